"""What is available: models, published weights, datasets and recipes.

Nothing here imports TensorFlow or Keras.
"""

from typing import NamedTuple

from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative
from efficientnetv2.data import registry
from efficientnetv2.models import published, structure


class ModelEntry(NamedTuple):
    """A model of `hparams/models/`."""

    name: str
    image_size: int  # in pixels, as published
    parameters: int  # trainable ones, with 1,000 classes
    multiply_adds: int  # of one image of that size
    top1: dict[str, float]  # published weights to ImageNet's, in [0, 1]


class WeightsEntry(NamedTuple):
    """Published weights."""

    model: str
    weights: str  # what `build_model(weights=...)` takes
    top1: float | None  # on ImageNet in [0, 1]; None: not published


class DatasetEntry(NamedTuple):
    """A dataset of `datasets/`."""

    name: str  # what `load_config` takes
    source: str  # such as 'tfds'
    num_classes: int
    num_images: dict[str, int]  # by split
    recipe: str  # used unless another is named


class RecipeEntry(NamedTuple):
    """A recipe of `hparams/recipes/`."""

    name: str  # what `load_config(recipe=...)` takes
    summary: str  # first sentence of the file
    model: str | None  # that it trains; None: the default one
    epochs: float | None
    image_size: int | None  # of the evaluation, in pixels; None: the model's


def list_models() -> list[ModelEntry]:
    """Returns every model by name, with published accuracy, size and cost."""
    return [model_entry(name) for name in declarative.names("models")]


def model_entry(name: str, num_classes: int = 1000) -> ModelEntry:
    """Returns the entry of `list_models` for one model.

    Raises:
        ConfigError: for an unknown name.
    """
    config = config_lib.load_model(name, {"num_classes": num_classes})
    size = config["eval"]["isize"]
    sums = structure.count_model(config["model"], size)
    top1 = {
        entry.weights: entry.top1
        for entry in list_weights(name)
        if entry.top1 is not None
    }
    return ModelEntry(name, size, sums.trainable, sums.multiply_adds, top1)


def list_weights(model: str | None = None) -> list[WeightsEntry]:
    """Returns the published weights of one or all models, and their top-1.

    Raises:
        ConfigError: for an unknown name.
    """
    if model is not None:
        declarative.read_named("models", model)
    return [
        WeightsEntry(name, weights, top1 and round(top1 / 100, 3))
        for name in ([model] if model else declarative.names("models"))
        for weights, top1 in published.TOP1.get(name, {}).items()
    ]


def list_datasets() -> list[DatasetEntry]:
    """Returns every dataset of the registry."""
    infos = {n: registry.load_info(n) for n in declarative.names("datasets")}
    return [
        DatasetEntry(
            name,
            info.source,
            info.num_classes,
            {key: split.num_images for key, split in info.splits.items()},
            info.recipe,
        )
        for name, info in infos.items()
    ]


def list_recipes() -> list[RecipeEntry]:
    """Returns every recipe, with its model, length and image size."""
    return [
        RecipeEntry(
            name,
            declarative.comment("recipes", name),
            content.get("model", {}).get("model_name"),
            content.get("train", {}).get("epochs"),
            content.get("eval", {}).get("isize"),
        )
        for name in declarative.names("recipes")
        for content in [declarative.read_named("recipes", name)]
    ]
