"""What else a network tells about images: features, and where it looked.

Both need the network itself, which a SavedModel does not expose.
"""

import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from efficientnetv2.data import decoding, preprocessing
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture
from efficientnetv2.serving import predict
from efficientnetv2.serving.loading import Classifier
from efficientnetv2.serving.predict import Prediction

_SIZE = 448
_TEXT = 20
# Of an occlusion: patches in a row, and images at a time.
_PATCHES, _BATCH = 8, 32


def _network(classifier: Classifier) -> keras.Model:
    network = classifier.network
    if network is None:
        raise UserError(
            "A SavedModel gives only probabilities. For features and "
            "Grad-CAM, name the folder of the run, or a .keras file from "
            "--formats=keras."
        )
    if not architecture.is_ours(network):
        raise UserError(
            "Features and Grad-CAM need a model of efficientnetv2, whose "
            f"layers are known; this is {network.name!r}."
        )
    return network


def _prepare(classifier: Classifier, images: Sequence[bytes]) -> tf.Tensor:
    """Returns images as the network takes them, [batch, size, size, 3]."""
    spec = classifier.spec
    prepared = tf.stack([spec.decode(tf.constant(data)) for data in images])
    if classifier.takes_pixels:
        return preprocessing.to_pixels(prepared, spec.mode)
    return prepared


def features(
    classifier: Classifier,
    images: Iterable[predict.Image],
    batch_size: int = 32,
) -> np.ndarray:
    """Returns what the classifier layer sees, float32 [images, features].

    Raises:
        UserError: for a SavedModel.
    """
    network = _network(classifier)
    body = keras.Model(network.input, network.get_layer("head").output)
    encoded = [predict.encode_image(image) for image in images]
    rows = [np.zeros([0, body.output.shape[-1]], np.float32)]
    for first in range(0, len(encoded), batch_size):
        batch = _prepare(classifier, encoded[first : first + batch_size])
        rows.append(np.asarray(body(batch, training=False)))
    return np.concatenate(rows)


def grad_cam(
    classifier: Classifier, image: predict.Image, label: int
) -> np.ndarray:
    """Returns how much each part of an image supports a class.

    Grad-CAM (Selvaraju et al., arXiv 1610.02391) on the features of the last
    block: float32 [size, size] in [0, 1], of the network's image size; the
    largest value is 1, unless no part supports the class.

    Raises:
        UserError: for a SavedModel.
    """
    network = _network(classifier)
    names = [layer.name for layer in network.layers]
    *_, last = (name for name in names if name.startswith("reduction_"))
    inner = network.get_layer(last).output
    body = keras.Model(network.input, inner)
    rest = keras.Model(inner, network.output)
    prepared = _prepare(classifier, [predict.encode_image(image)])
    maps = body(prepared, training=False)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(maps)
        score = rest(maps, training=False)[:, label]
    gradient = tape.gradient(score, maps)
    weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
    size = classifier.spec.image_size
    return _scaled(heat[0], size, size)


def occlusion(
    classifier: Classifier, image: predict.Image, label: int
) -> np.ndarray:
    """Returns how much a class loses where a part of an image is covered.

    For models whose network is out of reach. Grey patches cover overlapping
    parts (Zeiler and Fergus, arXiv 1311.2901, section 4.2).

    Returns:
        float32 [height, width] in [0, 1], of the image, the longer side at most
        448 pixels; the largest value is 1, unless no patch matters.
    """
    pixels = np.asarray(_small(image))
    height, width = pixels.shape[:2]
    covered = [pixels]
    for row, column in np.ndindex(_PATCHES, _PATCHES):
        one = pixels.copy()
        one[_patch(row, height), _patch(column, width)] = 128
        covered.append(one)
    encoded = [tf.io.encode_png(each).numpy() for each in covered]
    rows = [
        classifier.classify(encoded[k : k + _BATCH])[:, label]
        for k in range(0, len(encoded), _BATCH)
    ]
    whole, *parts = np.concatenate(rows)
    lost = np.maximum(whole - np.float32(parts), 0.0)
    return _scaled(lost.reshape(_PATCHES, _PATCHES, 1), height, width)


def _scaled(heat, height: int, width: int) -> np.ndarray:
    """Resizes a map of at least 0; the largest value is then 1, or all 0."""
    heat = tf.image.resize(heat, [height, width])[..., 0].numpy()
    return heat / (heat.max() or 1.0)


def _patch(number: int, side: int) -> slice:
    """Returns what a patch covers of a side: its place and half around it."""
    first, last = (2 * number - 1) * side, (2 * number + 3) * side
    return slice(max(0, first // (2 * _PATCHES)), -(-last // (2 * _PATCHES)))


def _small(image: predict.Image) -> Image.Image:
    shown = picture(image)
    shown.thumbnail((_SIZE, _SIZE))
    return shown


def attention(
    classifier: Classifier, image: predict.Image, best: Prediction
) -> tuple[Image.Image, str]:
    """Returns where a model looked, above the image, and the method.

    That is Grad-CAM if the network is at hand and ours, else occlusion.
    """
    network = classifier.network
    if network is not None and architecture.is_ours(network):
        return _grad_cam_picture(classifier, image, best), "Grad-CAM"
    heat = occlusion(classifier, image, best.label)
    return overlay(np.asarray(_small(image)), heat), "occlusion"


def overlay(pixels: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Returns an image with its heat above it: blue for 0, red for 1.

    Pixels are [height, width, 3] in [0, 255], heat [height, width] in [0, 1].
    """
    heat = heat[..., np.newaxis]
    colours = np.concatenate(
        [heat, 1 - np.abs(2 * heat - 1), 1 - heat], axis=-1
    )
    mixed = 0.55 * np.asarray(pixels, np.float32) + 0.45 * 255 * colours
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def draw_grad_cam(
    classifier: Classifier, image: predict.Image, best: Prediction
) -> Image.Image:
    """Returns the image that the network saw, with its heat above it."""
    return _caption(_grad_cam_picture(classifier, image, best), best)


def _grad_cam_picture(
    classifier: Classifier, image: predict.Image, best: Prediction
) -> Image.Image:
    pixels = _prepare(classifier, [predict.encode_image(image)])[0]
    if not classifier.takes_pixels:
        pixels = preprocessing.denormalize(pixels, classifier.spec.mode)
    return overlay(pixels, grad_cam(classifier, image, best.label))


def annotate(image: predict.Image, best: Prediction) -> Image.Image:
    """Returns an image with its likeliest class written below it."""
    return _caption(picture(image), best)


def picture(image: predict.Image) -> Image.Image:
    """Returns an image as it is decoded for a model, in its own size."""
    data = tf.constant(predict.encode_image(image))
    return Image.fromarray(decoding.decode(data, portable=True).numpy())


def scaled_size(picture: Image.Image, longer: int) -> tuple[int, int]:
    """Returns width and height in proportion, the longer side being given."""
    scale = longer / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return width, height


def _caption(shown: Image.Image, best: Prediction) -> Image.Image:
    size = scaled_size(shown, _SIZE)
    sheet = Image.new("RGB", (size[0], size[1] + _TEXT + 12), "white")
    sheet.paste(shown.resize(size))
    font = ImageFont.load_default(_TEXT)
    text = f"{best.probability:.1%} {best.name}"
    while font.getlength(text) > size[0] and len(text) > 4:
        text = text[:-4] + "..."
    ImageDraw.Draw(sheet).text((4, size[1] + 4), text, "black", font)
    return sheet


def free_place(
    folder: str | os.PathLike, name: str, suffix: str | None = None
) -> pathlib.Path:
    """Returns a path in a folder, which is made, for a copy of a file.

    A name that is taken gets a number. `suffix` takes the place of the
    original's.
    """
    folder, source = pathlib.Path(folder), pathlib.Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = source.suffix if suffix is None else suffix
    numbers = itertools.chain([""], (f"_{k}" for k in itertools.count(2)))
    paths = (folder / f"{source.stem}{number}{suffix}" for number in numbers)
    return next(path for path in paths if not path.exists())
