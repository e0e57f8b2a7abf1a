"""Predictions from any form of a model, for images in any form."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2 import checkpoints, evaluation, runs, zoo
from efficientnetv2 import config as config_lib
from efficientnetv2.data import decoding, faults, registry
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.models import architecture
from efficientnetv2.serving import locate, saved_model
from efficientnetv2.serving import spec as spec_lib
from efficientnetv2.serving.locate import Location
from efficientnetv2.serving.spec import ServingError, ServingSpec

Image = str | os.PathLike | bytes | np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class that an image may be of.

    Attributes:
        label: number of the class, from 0.
        name: of the class.
        probability: in [0, 1].
    """

    label: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A loaded model.

    Attributes:
        class_names: one a class.
        classify: from encoded images to probabilities, float32 [batch,
            classes].
        network: from normalized images to logits; None for a SavedModel.
        spec: of the network.
    """

    class_names: Sequence[str]
    classify: Callable[[Sequence[bytes]], np.ndarray]
    network: keras.Model | None = None
    spec: ServingSpec | None = None


def predict(
    model: str | os.PathLike | Classifier,
    images: Image | Iterable[Image],
    top: int = 5,
    batch_size: int = 32,
    checkpoint: str | None = None,
    weights: str | None = None,
) -> list[list[Prediction]]:
    """Predicts the classes of images.

    Images are prepared as in the evaluation of the model.

    Example:

        for best, *_ in predict("runs/fashion_mnist", ["a.png", "b.jpg"]):
            print(best.name, best.probability)

    Args:
        model: folder of a SavedModel, .keras file of --mode=export, folder of
            a run, name of a model with published weights, or what `load`
            returned.
        images: one or several of: a path; the bytes of a JPEG, PNG, GIF, BMP
            or WebP; an array uint8 [height, width, 3]. Or an array uint8
            [images, height, width, 3].
        top: how many classes to return of each image, the likeliest first.
        batch_size: images at a time.
        checkpoint: of a run: best (default), last, a step or a file.
        weights: of a name: 'imagenet' (default), or another name or path that
            `efficientnetv2.build_model` takes.

    Returns:
        A list of `top` predictions for each image.

    Raises:
        DataError: for an image that cannot be read, which is named.
        UserError: for a model that cannot be had.
    """
    several = isinstance(images, np.ndarray) and images.ndim == 4
    if isinstance(images, Image) and not several:
        images = [images]
    if not isinstance(model, Classifier):
        model = load(model, checkpoint, weights)

    def refuse(index, image, reason):
        path = f" {image}" if isinstance(image, (str, os.PathLike)) else ""
        raise DataError(f"Image {index}{path} cannot be read: {reason}.")

    return [
        predictions
        for _, predictions in stream(model, images, top, batch_size, refuse)
    ]


def stream(
    classifier: Classifier,
    images: Iterable[Image],
    top: int,
    batch_size: int,
    on_error: Callable[[int, Image, str], None],
) -> Iterator[tuple[Image, list[Prediction]]]:
    """Yields (image, predictions), batch by batch, in order.

    Args:
        classifier: from `load`.
        images, top, batch_size: see `predict`.
        on_error: called with number, image and reason for an image that
            cannot be read, which is then left out.
    """
    numbered = enumerate(images)
    while batch := list(itertools.islice(numbered, batch_size)):
        readable = []
        for index, image in batch:
            try:
                readable.append((index, image, encode(image)))
            except OSError as error:
                on_error(index, image, error.strerror or str(error))
            except tf.errors.OpError:
                reason = faults.fault_of_image(tf.constant(_read(image)))
                on_error(index, image, reason or "not an image")
        good, rows = _classify(classifier, readable, on_error)
        for image, row in zip(good, rows, strict=True):
            yield image, _best(row, classifier.class_names, top)


def _classify(classifier, readable, on_error):
    """Returns the images that can be decoded and their probabilities."""
    try:
        return _run(classifier, readable)
    except tf.errors.OpError:
        # One image spoils its batch; which one is looked for only now.
        reasons = [
            faults.fault_of_image(tf.constant(data)) for *_, data in readable
        ]
        if not any(reasons):
            raise
    good = []
    for entry, reason in zip(readable, reasons, strict=True):
        if reason:
            on_error(entry[0], entry[1], reason)
        else:
            good.append(entry)
    return _run(classifier, good)


def _run(classifier, readable):
    if not readable:
        return [], []
    rows = classifier.classify([data for *_, data in readable])
    return [image for _, image, _ in readable], rows


def _read(image: str | os.PathLike | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    return pathlib.Path(image).expanduser().read_bytes()


def encode(image: Image) -> bytes:
    """Returns an image as a model that is exported takes it."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"An image of shape {image.shape} and type {image.dtype} is "
                "not uint8 [height, width, 3]."
            )
        return tf.io.encode_png(image).numpy()
    return decoding.to_portable(_read(image))


def _best(row: np.ndarray, names: Sequence[str], top: int) -> list[Prediction]:
    order = np.argsort(-row, kind="stable")[:top]
    return [Prediction(int(k), names[k], float(row[k])) for k in order]


# --- Models -----------------------------------------------------------------


def load(
    model: str | os.PathLike,
    checkpoint: str | None = None,
    weights: str | None = None,
) -> Classifier:
    """Loads a model; arguments and errors as of `predict`."""
    found = locate.find_model(model, checkpoint, weights)
    if found.kind == "saved_model":
        names = saved_model.read_class_names(found.path)
        return Classifier(names, saved_model.load(found.path))
    with _float32():
        if found.kind == "keras":
            network, spec = _from_keras(found)
        elif found.kind == "run":
            network, spec = _from_run(found, checkpoint)
        else:
            network, spec = _published(found.name, weights or "imagenet")
    module = saved_model.ServingModel(network, spec)

    def classify(images):
        outputs = module.classify_encoded(tf.constant(images))
        return outputs["probabilities"].numpy()

    return Classifier(spec.class_names, classify, network, spec)


@contextlib.contextmanager
def _float32():
    """Builds models in float32, whatever else the program builds."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _from_keras(found: Location):
    spec = spec_lib.read_from_keras(found.path)
    try:
        network = keras.models.load_model(found.path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ServingError(
            f"{found.path} is cut short, corrupt or of another version "
            f"({str(error).strip().splitlines()[0]})."
        ) from error
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
            f"{found.path / config_lib.FILE} is not of a run: no {error}."
        ) from None
    names = runs.read_class_names(found.path)
    if names is None:
        names = registry.load_info(config["data"]["ds_name"]).class_names
    network = architecture.build(config["model"])
    best = checkpoints.load(checkpoints.find(found.path, checkpoint))
    evaluation.load_averaged(network, best)
    return network, ServingSpec.from_config(config, names)


def _published(name: str, weights: str):
    of_21k = weights == "imagenet21k"
    info = registry.load_info("imagenet21k" if of_21k else "imagenet")
    network = zoo.build_model(name, weights=weights)
    config = config_lib.load_model(name, {"num_classes": info.num_classes})
    return network, ServingSpec.from_config(config, info.class_names)
