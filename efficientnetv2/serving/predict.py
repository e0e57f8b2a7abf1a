"""Predictions by any form of a model, for images in any form; accuracy."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import PIL.Image
import tensorflow as tf

from efficientnetv2 import progress
from efficientnetv2.data import decoding, faults, listing, sources
from efficientnetv2.data.sources import ArraySource, Source
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.serving.loading import Classifier, load_classifier

Image = str | os.PathLike | bytes | np.ndarray | PIL.Image.Image


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class, and the probability that an image belongs to it."""

    label: int  # number of the class, from 0
    name: str  # of the class
    probability: float  # in [0, 1]


def predict(
    model: str | os.PathLike | keras.Model | Classifier,
    images: Image | Iterable[Image],
    top: int = 5,
    batch_size: int = 32,
    checkpoint: str | None = None,
    weights: str | os.PathLike | None = None,
    image_size: int | None = None,
    normalization: str | None = None,
    class_names: str | Sequence[str] | None = None,
) -> list[list[Prediction]]:
    """Predicts the classes of images.

    Images are prepared as in the evaluation of the model.

    Example:

        for best, *_ in predict("runs/fashion_mnist", ["a.png", "b.jpg"]):
            print(best.name, best.probability)

        predict(
            keras.applications.MobileNetV2(), "cat.png", image_size=224,
            normalization="ft", class_names="imagenet",
        )

    Args:
        model: folder of a SavedModel, .keras file, folder of a run, name of a
            model with published weights, YAML file of an architecture with
            `weights`, a model object, or what `load_classifier` returned.
        images: one or several of: a path; the bytes of a JPEG, PNG, GIF, BMP
            or WebP; an image of Pillow; an array uint8 [height, width, 3].
            Or an array uint8 [images, height, width, 3]. Arrays must be
            upright: EXIF's orientation, which is applied to all others, is
            lost in them.
        top: how many classes to return for each image, the most likely first.
        batch_size: images at a time.
        checkpoint: of a run: best (default), last, a step or a file.
        weights: of a name, or of a YAML file: 'imagenet' (default), or what
            `efficientnetv2.build_model` takes.
        image_size: in pixels; by default the model's own. A .keras file that
            `model.save` wrote, or a model object, need not know it.
        normalization: likewise: one of `normalizations.MODES`, or 'none' for a
            model that takes pixel values in [0, 255].
        class_names: one per class, or the name of a dataset such as
            'imagenet'; by default the model's own, or 'class 0' and so on.

    Returns:
        A list of `top` predictions for each image.

    Raises:
        DataError: for an image that cannot be read, which is named.
        UserError: for a model that could not be loaded, or does not say how
            its images are prepared.
    """
    several = isinstance(images, np.ndarray) and images.ndim == 4
    if isinstance(images, Image) and not several:
        images = [images]
    if not isinstance(model, Classifier):
        model = load_classifier(
            model, checkpoint, weights, image_size, normalization, class_names
        )

    def refuse(index, image, reason):
        path = f" {image}" if isinstance(image, (str, os.PathLike)) else ""
        raise DataError(f"Image {index}{path} cannot be read: {reason}.")

    return [
        predictions
        for _, predictions in predict_stream(
            model, images, top, batch_size, refuse
        )
    ]


def predict_stream(
    classifier: Classifier,
    images: Iterable[Image],
    top: int,
    batch_size: int,
    on_error: Callable[[int, Image, str], None],
) -> Iterator[tuple[Image, list[Prediction]]]:
    """Yields (image, predictions), batch by batch, in order.

    Arguments are those of `predict`, but for `on_error`: it is called with
    number, image and reason for an image that cannot be read, which is then
    left out.
    """
    numbered = enumerate(images)
    while batch := list(itertools.islice(numbered, batch_size)):
        readable = []
        for index, image in batch:
            try:
                readable.append((index, image, encode_image(image)))
            except OSError as error:
                on_error(index, image, error.strerror or str(error))
            except tf.errors.OpError:
                reason = faults.fault_of_image(tf.constant(_read(image)))
                on_error(index, image, reason or "not an image")
        try:
            rows = _classify(classifier, readable)
        except tf.errors.OpError:
            # One bad image fails its batch; find out which one.
            good = []
            for entry in readable:
                if reason := faults.fault_of_image(tf.constant(entry[2])):
                    on_error(entry[0], entry[1], reason)
                else:
                    good.append(entry)
            if len(good) == len(readable):
                raise
            readable, rows = good, _classify(classifier, good)
        for (_, image, _), row in zip(readable, rows, strict=True):
            order = np.argsort(-row, kind="stable")[:top]
            yield (
                image,
                [
                    Prediction(int(k), classifier.class_names[k], float(row[k]))
                    for k in order
                ],
            )


def _classify(classifier: Classifier, readable) -> Sequence[np.ndarray]:
    encoded = [data for *_, data in readable]
    return classifier.classify(encoded) if encoded else []


def _read(image: str | os.PathLike | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    return pathlib.Path(image).expanduser().read_bytes()


def encode_image(image: Image) -> bytes:
    """Returns an image as a model that is exported takes it."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"An image of shape {image.shape} and type {image.dtype} is "
                "not uint8 [height, width, 3]."
            )
        return tf.io.encode_png(image).numpy()
    if isinstance(image, PIL.Image.Image):
        return decoding.from_pillow(image)
    return decoding.to_portable(_read(image))


# --- Accuracy on a dataset ----------------------------------------------------


def evaluate_classifier(
    classifier: Classifier, source: Source, batch_size: int = 32
) -> dict[str, float]:
    """Evaluates a classifier on every image of a split, of one class each.

    The classes of the split are found among the model's by name; ImageNet's
    may be called n02123159 or tiger cat.

    Returns:
        'top1' and 'top5' in [0, 1], among all classes of the model, and
        'images'.

    Raises:
        DataError: for a class that the model does not know, or an image that
            cannot be read.
    """
    known = list(classifier.class_names)
    names = listing.in_words(source.class_names)
    places = np.arange(len(known))
    if names != known:
        # Of two classes of ImageNet called crane only the order tells which.
        places = np.array(listing.match_names(names, known))
    top1 = top5 = images = 0
    batches = _encoded(source).batch(batch_size)
    total = -(-len(source) // batch_size)
    with faults.explained(source):
        for encoded, labels in progress.track(
            batches.as_numpy_iterator(), "Evaluating", total, "batches"
        ):
            if labels.ndim > 1:
                raise DataError(
                    "Weights are evaluated on images of one class each, and "
                    "these have several."
                )
            rows = classifier.classify(list(encoded))
            best = np.argsort(-rows, axis=1, kind="stable")[:, :5]
            found = best == places[labels][:, None]
            top1 += int(found[:, 0].sum())
            top5 += int(found.sum())
            images += len(labels)
    return {"top1": top1 / images, "top5": top5 / images, "images": images}


def _encoded(source: Source) -> tf.data.Dataset:
    """Returns (encoded image, label) of every example."""
    if not isinstance(source, ArraySource):
        return sources.encoded_examples(source)
    dataset = tf.data.Dataset.from_tensor_slices((source.images, source.labels))
    return dataset.map(
        lambda image, label: (tf.io.encode_png(image), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
