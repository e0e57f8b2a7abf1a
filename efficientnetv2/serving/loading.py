"""Loads any form of a model as an image classifier."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2 import checkpoints, declarative, zoo
from efficientnetv2 import config as config_lib
from efficientnetv2.data import (
    decoding,
    fingerprint,
    listing,
    preprocessing,
    registry,
)
from efficientnetv2.models import architecture, weights
from efficientnetv2.options import MIN_IMAGE_SIZE
from efficientnetv2.serving import converters, formats
from efficientnetv2.serving.formats import Location, ModelError
from efficientnetv2.serving.spec import (
    ServingError,
    ServingSpec,
    read_record,
)

# As `build_model` calls them; 'none' for a model that takes [0, 255].
NORMALIZATIONS = ("v2", "v1", "lite", "ft", "none")


class Classifier(NamedTuple):
    """A loaded model."""

    class_names: Sequence[str]
    # From encoded images to probabilities, float32 [batch, classes].
    classify: Callable[[Sequence[bytes]], np.ndarray]
    # From images to logits; None for a SavedModel.
    network: keras.Model | None = None
    spec: ServingSpec | None = None  # of the network
    # Whether the network takes [0, 255] instead of normalized images.
    takes_pixels: bool = False


def load_classifier(
    model: str | os.PathLike | keras.Model,
    checkpoint: str | None = None,
    weights: str | os.PathLike | None = None,
    image_size: int | None = None,
    normalization: str | None = None,
    class_names: str | Sequence[str] | None = None,
) -> Classifier:
    """Loads a model; arguments and errors as of `predict`."""
    given = _given(image_size, normalization, class_names)
    if isinstance(model, keras.Model):
        if checkpoint is not None or weights is not None:
            raise ModelError("A model object has its own weights.")
        return _classifier(model, _spec_of(model, given), given)
    found = formats.find_model(model, checkpoint, weights)
    if found.kind == "saved_model":
        if given:
            raise ModelError(
                f"{model} is a SavedModel, which prepares its images and names "
                f"its classes itself: leave out {', '.join(given)}."
            )
        names = listing.in_words(converters.read_class_names(found.path))
        return Classifier(names, converters.load_saved_model(found.path))
    with _float32():
        if found.kind == "keras":
            network, spec = _from_keras(found, given)
        elif found.kind == "run":
            network, spec = _from_run(found, checkpoint)
        else:
            network, spec = _by_name(found.name, weights)
    return _classifier(network, spec, given)


def _classifier(
    network: keras.Model, spec: ServingSpec, given: Mapping[str, Any]
) -> Classifier:
    """Returns the classifier of a network; what is given goes before spec."""
    image_size = given.get("image_size", spec.image_size)
    mode = given.get("normalization", "none" if _inside(network) else spec.mode)
    if mode != "none" and _inside(network):
        raise ModelError(
            "The model normalizes its images itself: leave out "
            f"normalization={mode!r}."
        )
    names = spec.class_names
    if "class_names" in given:
        names = _class_names(given["class_names"], len(names))
    takes_pixels = mode == "none"
    spec = dataclasses.replace(
        spec,
        image_size=image_size,
        mode=spec.mode if takes_pixels else mode,
        class_names=listing.in_words(names),
    )

    def infer(images):
        if takes_pixels:
            images = preprocessing.to_pixels(images, spec.mode)
        return network(images, training=False)

    module = converters.ServingModel(infer, spec)

    def classify(images):
        outputs = module.classify_encoded(tf.constant(images))
        return outputs["probabilities"].numpy()

    return Classifier(spec.class_names, classify, network, spec, takes_pixels)


@contextlib.contextmanager
def _float32():
    """Builds models in float32, whatever else the program builds."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


# --- What the user says of a model ------------------------------------------


def _given(
    image_size: int | None, normalization: str | None, class_names
) -> dict[str, Any]:
    """Returns what is given, checked."""
    is_size = isinstance(image_size, int) and image_size >= MIN_IMAGE_SIZE
    if image_size is not None and not is_size:
        raise ModelError(
            f"image_size={image_size!r} must be a whole number of at least "
            f"{MIN_IMAGE_SIZE} pixels."
        )
    if normalization not in (None, *NORMALIZATIONS):
        raise ModelError(
            f"Unknown normalization {normalization!r}."
            + declarative.suggest(str(normalization), list(NORMALIZATIONS))
        )
    values = (image_size, normalization, class_names)
    names = ("image_size", "normalization", "class_names")
    return {k: v for k, v in zip(names, values, strict=True) if v is not None}


def _class_names(names: str | Sequence[str], count: int) -> list[str]:
    if isinstance(names, str):
        names = registry.load_info(names).class_names
    if len(names) != count:
        raise ModelError(
            f"class_names has {len(names):,} names, the model {count:,} "
            "classes."
        )
    return list(names)


def _inside(network: keras.Model) -> bool:
    """Whether one of our models normalizes its images itself."""
    names = {layer.name for layer in architecture.flat_layers(network)}
    return architecture.is_ours(network) and architecture.NORMALIZE in names


def _spec_of(
    network: keras.Model, given: Mapping[str, Any], label: str = ""
) -> ServingSpec:
    """Returns the spec of a model that has none.

    What the user does not say follows from the name and the shape of one of
    our models, where it can.
    """
    label = label or f"The model {network.name!r}"
    shapes = network.input_shape, network.output_shape
    if not all(isinstance(shape, tuple) for shape in shapes) or (
        len(shapes[0]) != 4 or shapes[0][-1] != 3 or len(shapes[1]) != 2
    ):
        raise ModelError(
            f"{label} maps {shapes[0]} to {shapes[1]}; it must map images "
            "[batch, height, width, 3] to one number per class."
        )
    (_, height, width, _), (_, classes) = shapes
    size = height if height == width else None
    mode, names = None, declarative.names("models")
    if architecture.is_ours(network) and network.name in names:
        known = config_lib.load_model(network.name, {})
        size = size or known["eval"]["isize"]
        mode = known["data"]["normalization"]
    elif _inside(network):
        mode = "v2"
    size = given.get("image_size", size)
    normalization = given.get("normalization", mode)
    missing = []
    if size is None:
        missing.append("image_size=..., in pixels")
    if normalization is None:
        missing.append(f"normalization=..., one of {', '.join(NORMALIZATIONS)}")
    if missing:
        raise ModelError(
            f"{label} does not say how its images are prepared: give "
            f"{' and '.join(missing)}."
        )
    if normalization == "none":
        normalization = mode or "v2"
    return ServingSpec(
        image_size=size,
        mode=normalization,
        transformations=None,
        activation=_activation(network),
        class_names=[f"class {k}" for k in range(classes)],
    )


def _activation(network: keras.Model) -> str:
    """Returns what makes probabilities of a model's outputs.

    Other people's models often end with probabilities themselves.
    """
    last = network
    while hasattr(last, "layers"):
        last = last.layers[-1]
    ready = (keras.activations.softmax, keras.activations.sigmoid)
    is_softmax = isinstance(last, keras.layers.Softmax)
    is_ready = is_softmax or getattr(last, "activation", None) in ready
    return "none" if is_ready else "softmax"


# --- Forms of a model -------------------------------------------------------


def _from_keras(found: Location, given: Mapping[str, Any]):
    try:
        network = keras.models.load_model(found.path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ServingError(
            f"{found.path} is truncated, corrupt or from another version "
            f"({str(error).strip().splitlines()[0]})."
        ) from error
    label = f"{found.path}, by model.save,"
    spec = read_record(found.path) or _spec_of(network, given, label)
    return network, spec


def _from_run(found: Location, checkpoint: str | None):
    saved = config_lib.read_saved(found.path)
    try:
        # What has no part in predictions, above all the data, may be gone.
        config = config_lib.load_model(
            saved["model"]["model_name"], saved["model"]
        )
        for section in ("train", "eval", "data"):
            config[section] |= saved[section]
    except (KeyError, TypeError) as error:
        raise ServingError(
            f"{found.path / config_lib.FILE} is not the configuration of a "
            f"run: no {error}."
        ) from None
    names = fingerprint.class_names(found.path)
    if names is None:
        names = registry.load_info(config["data"]["ds_name"]).class_names
    network = architecture.build_network(config["model"])
    named = checkpoints.read_named(found.path, checkpoint)
    weights.load_averaged(network, named)
    return network, ServingSpec.from_config(config, names)


def _by_name(name: str, weights: str | os.PathLike | None):
    """Builds a model by its name, or by the path of a YAML file."""
    if weights is None:
        if pathlib.Path(name).suffix:
            raise ModelError(
                f"{name} describes a model without weights: give "
                "weights=..., such as the folder of a run or a .h5 file."
            )
        weights = "imagenet"
    network = zoo.build_model(name, weights=weights)
    classes = network.output_shape[-1]
    config = config_lib.load_model(name, {"num_classes": classes})
    by_count = {1000: "imagenet", 21_843: "imagenet21k"}
    names = []
    if classes in by_count and not pathlib.Path(name).suffix:
        names = registry.load_info(by_count[classes]).class_names
    return network, ServingSpec.from_config(config, names)


# --- Test-time augmentation: the mean over several views of an image ---------

# Part of the side of an image that a crop keeps.
_PART = 7 / 8


def views_of(data: bytes, kind: str) -> list[bytes]:
    """Returns the views of an encoded image, the image itself first.

    'flip' adds the mirror image; 'crop' the four corners and the centre, each
    7/8 of both sides; 'all' these and their mirror images.
    """
    pixels = decoding.decode(tf.constant(data), portable=True).numpy()
    chosen = [pixels]
    if kind in ("crop", "all"):
        full = pixels.shape[:2]
        height, width = (max(1, round(_PART * side)) for side in full)
        bottom, right = full[0] - height, full[1] - width
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        chosen += [
            pixels[top : top + height, left : left + width]
            for top, left in [*corners, (bottom // 2, right // 2)]
        ]
    if kind in ("flip", "all"):
        chosen += [view[:, ::-1] for view in chosen]
    return [data, *(tf.io.encode_png(view).numpy() for view in chosen[1:])]


def averaging(
    classify: Callable[[Sequence[bytes]], np.ndarray], kind: str
) -> Callable[[Sequence[bytes]], np.ndarray]:
    """Returns a `Classifier.classify` that averages over views of each image.

    `kind` is that of `views_of`.
    """

    def classify_views(images):
        views = [views_of(data, kind) for data in images]
        # Batches of images stay as large as they were.
        rows = [classify(list(batch)) for batch in zip(*views, strict=True)]
        return np.mean(rows, axis=0)

    return classify_views
