"""What there is: models, published weights, datasets and recipes.

Nothing here imports TensorFlow or Keras.
"""

import dataclasses

from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative
from efficientnetv2.data import registry
from efficientnetv2.models import counting

# Top-1 in % on ImageNet's validation set, single crop, as the authors publish
# it with the weights: google/automl, efficientnetv2/README.md, for V2;
# tensorflow/tpu, models/official/efficientnet/README.md and lite/README.md,
# for V1 ('imagenet' is AdvProp, 'jft' Noisy Student). None: none is published.
_21K = {"imagenet21k": None}
_BOTH = {**_21K, "imagenet21k-ft1k": None}
_TOP1 = {
    "efficientnetv2-b0": {"imagenet": 78.7, **_BOTH},
    "efficientnetv2-b1": {"imagenet": 79.8, **_BOTH},
    "efficientnetv2-b2": {"imagenet": 80.5, **_BOTH},
    "efficientnetv2-b3": {"imagenet": 82.1, **_BOTH},
    "efficientnetv2-s": {"imagenet": 83.9, **_21K, "imagenet21k-ft1k": 84.9},
    "efficientnetv2-m": {"imagenet": 85.2, **_21K, "imagenet21k-ft1k": 86.2},
    "efficientnetv2-l": {"imagenet": 85.7, **_21K, "imagenet21k-ft1k": 86.9},
    "efficientnetv2-xl": {**_21K, "imagenet21k-ft1k": 87.2},
    "efficientnet-b0": {"imagenet": 77.6, "jft": 78.8},
    "efficientnet-b1": {"imagenet": 79.6, "jft": 81.5},
    "efficientnet-b2": {"imagenet": 80.5, "jft": 82.4},
    "efficientnet-b3": {"imagenet": 81.9, "jft": 84.1},
    "efficientnet-b4": {"imagenet": 83.3, "jft": 85.3},
    "efficientnet-b5": {"imagenet": 84.3, "jft": 86.1},
    "efficientnet-b6": {"imagenet": 84.8, "jft": 86.4},
    "efficientnet-b7": {"imagenet": 85.2, "jft": 86.9},
    "efficientnet-b8": {"imagenet": 85.5},
    "efficientnet-lite0": {"imagenet": 75.1},
    "efficientnet-lite1": {"imagenet": 76.7},
    "efficientnet-lite2": {"imagenet": 77.6},
    "efficientnet-lite3": {"imagenet": 79.8},
    "efficientnet-lite4": {"imagenet": 81.5},
    "efficientnet-l2": {"jft": 88.4, "jft-475": 88.2},
}


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A model of `hparams/models/`.

    Attributes:
        name: of the model.
        image_size: side of its images in pixels, as published.
        parameters: trainable ones, with 1,000 classes.
        multiply_adds: of one image of that size.
        top1: published weights to top-1 on ImageNet in [0, 1]; empty where
            nothing was published.
    """

    name: str
    image_size: int
    parameters: int
    multiply_adds: int
    top1: dict[str, float]


@dataclasses.dataclass(frozen=True)
class WeightsEntry:
    """Published weights.

    Attributes:
        model: name of the model.
        weights: what `build_model(weights=...)` takes.
        top1: on ImageNet in [0, 1], as published; None where none is.
    """

    model: str
    weights: str
    top1: float | None


@dataclasses.dataclass(frozen=True)
class DatasetEntry:
    """A dataset of `datasets/`.

    Attributes:
        name: what `load_config` takes.
        source: 'tfds', 'tfrecord', ...
        num_classes: number of classes.
        num_images: split to number of images.
        recipe: used unless another is named.
    """

    name: str
    source: str
    num_classes: int
    num_images: dict[str, int]
    recipe: str


@dataclasses.dataclass(frozen=True)
class RecipeEntry:
    """A recipe of `hparams/recipes/`.

    Attributes:
        name: what `load_config(recipe=...)` takes.
        summary: first sentence of the file.
        model: name of the model that it trains; None for the default one.
        epochs: length.
        image_size: of the evaluation, in pixels; None for the model's.
    """

    name: str
    summary: str
    model: str | None
    epochs: float | None
    image_size: int | None


def list_models() -> list[ModelEntry]:
    """Returns every model by name, with published accuracy, size and cost."""
    return [describe_model(name) for name in declarative.names("models")]


def describe_model(name: str, num_classes: int = 1000) -> ModelEntry:
    """Returns what `list_models` has of one model.

    Raises:
        ConfigError: for an unknown name.
    """
    config = config_lib.load_model(name, {"num_classes": num_classes})
    size = config["eval"]["isize"]
    sums = counting.total(counting.count_stages(config["model"], size))
    top1 = {
        entry.weights: entry.top1
        for entry in list_weights(name)
        if entry.top1 is not None
    }
    return ModelEntry(name, size, sums.trainable, sums.multiply_adds, top1)


def list_weights(model: str | None = None) -> list[WeightsEntry]:
    """Returns the published weights, with their top-1 on ImageNet.

    Args:
        model: name of a model; None for all models.

    Raises:
        ConfigError: for an unknown name.
    """
    if model is not None:
        declarative.named("models", model)
    return [
        WeightsEntry(name, weights, top1 and round(top1 / 100, 3))
        for name in ([model] if model else declarative.names("models"))
        for weights, top1 in _TOP1.get(name, {}).items()
    ]


def list_datasets() -> list[DatasetEntry]:
    """Returns every dataset of the registry."""
    entries = []
    for name in declarative.names("datasets"):
        info = registry.load_info(name)
        images = {key: split.num_images for key, split in info.splits.items()}
        entries.append(
            DatasetEntry(
                name, info.source, info.num_classes, images, info.recipe
            )
        )
    return entries


def list_recipes() -> list[RecipeEntry]:
    """Returns every recipe, with its model, length and image size."""
    entries = []
    for name in declarative.names("recipes"):
        content = declarative.named("recipes", name)
        entries.append(
            RecipeEntry(
                name,
                declarative.comment("recipes", name),
                content.get("model", {}).get("model_name"),
                content.get("train", {}).get("epochs"),
                content.get("eval", {}).get("isize"),
            )
        )
    return entries
