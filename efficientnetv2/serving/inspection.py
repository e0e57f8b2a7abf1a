"""What else a network says of images: features, and where it looked.

Both need the network itself, which a SavedModel does not give away.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from efficientnetv2.data import decoding, preprocessing
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture, naming
from efficientnetv2.serving import predict
from efficientnetv2.serving.loading import Classifier
from efficientnetv2.serving.predict import Prediction

_SIZE = 448
_TEXT = 20


def _network(classifier: Classifier) -> keras.Model:
    if classifier.network is None:
        raise UserError(
            "A SavedModel gives probabilities alone. For features and "
            "Grad-CAM name the folder of the run, or a .keras file of "
            "--formats=keras."
        )
    if not naming.is_ours(classifier.network):
        raise UserError(
            "Features and Grad-CAM need a model of efficientnetv2, whose "
            f"layers are known; this is {classifier.network.name!r}."
        )
    return classifier.network


def _prepare(classifier: Classifier, images: Sequence[bytes]) -> tf.Tensor:
    """Returns images as the network takes them, [batch, size, size, 3]."""
    spec = classifier.spec
    prepared = tf.stack(
        [
            preprocessing.decode_for_eval(
                tf.constant(data),
                spec.image_size,
                spec.mode,
                spec.transformations,
                portable=True,
                antialias=spec.antialias,
            )
            for data in images
        ]
    )
    if _takes_pixels(classifier):
        return preprocessing.to_pixels(prepared, spec.mode)
    return prepared


def _takes_pixels(classifier: Classifier) -> bool:
    """Whether a network normalizes its images itself."""
    names = {layer.name for layer in classifier.network.layers}
    return architecture.NORMALIZE in names


def features(
    classifier: Classifier,
    images: Iterable[predict.Image],
    batch_size: int = 32,
) -> np.ndarray:
    """Returns the features that the classifier layer sees.

    Args:
        classifier: from `predict.load`, not of a SavedModel.
        images: see `predict.predict`.
        batch_size: images at a time.

    Returns:
        float32 [images, features].

    Raises:
        UserError: for a SavedModel.
    """
    network = _network(classifier)
    body = keras.Model(network.input, network.get_layer("head").output)
    encoded = [predict.encode(image) for image in images]
    rows = [
        np.asarray(
            body(
                _prepare(classifier, encoded[k : k + batch_size]),
                training=False,
            )
        )
        for k in range(0, len(encoded), batch_size)
    ]
    width = body.output.shape[-1]
    return np.concatenate([np.zeros([0, width], np.float32), *rows])


def grad_cam(
    classifier: Classifier, image: predict.Image, label: int
) -> np.ndarray:
    """Returns how much each place of an image speaks for a class.

    Grad-CAM (Selvaraju et al., arXiv 1610.02391) on the features of the last
    block.

    Args:
        classifier: from `predict.load`, not of a SavedModel.
        image: see `predict.predict`.
        label: number of the class.

    Returns:
        float32 [size, size] in [0, 1], of the network's image size; the
        largest value is 1, unless no place speaks for the class.

    Raises:
        UserError: for a SavedModel.
    """
    network = _network(classifier)
    last = [
        layer for layer in network.layers if layer.name.startswith("reduction_")
    ][-1]
    body = keras.Model(network.input, last.output)
    rest = keras.Model(last.output, network.output)
    maps = body(_prepare(classifier, [predict.encode(image)]), training=False)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(maps)
        score = rest(maps, training=False)[:, label]
    gradient = tape.gradient(score, maps)
    weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
    size = classifier.spec.image_size
    heat = tf.image.resize(heat, [size, size])[0, :, :, 0].numpy()
    largest = heat.max()
    return heat / largest if largest > 0 else heat


def draw_grad_cam(
    classifier: Classifier, image: predict.Image, best: Prediction
) -> Image.Image:
    """Returns the image that the network saw, with its heat above it."""
    _network(classifier)
    pixels = _prepare(classifier, [predict.encode(image)])[0]
    if not _takes_pixels(classifier):
        pixels = preprocessing.denormalize(pixels, classifier.spec.mode)
    pixels = np.asarray(pixels, np.float32)
    heat = grad_cam(classifier, image, best.label)[..., np.newaxis]
    # Blue where nothing speaks for the class, red where most does.
    colours = np.concatenate(
        [heat, 1 - np.abs(2 * heat - 1), 1 - heat], axis=-1
    )
    mixed = 0.55 * pixels + 0.45 * 255 * colours
    picture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
    return _caption(picture, best)


def annotate(image: predict.Image, best: Prediction) -> Image.Image:
    """Returns an image with its likeliest class written below it."""
    data = tf.constant(predict.encode(image))
    pixels = decoding.decode(data, portable=True).numpy()
    return _caption(Image.fromarray(pixels), best)


def _caption(picture: Image.Image, best: Prediction) -> Image.Image:
    scale = _SIZE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    picture = picture.resize(size)
    sheet = Image.new("RGB", (size[0], size[1] + _TEXT + 12), "white")
    sheet.paste(picture)
    font = ImageFont.load_default(_TEXT)
    text = f"{best.probability:.1%} {best.name}"
    while font.getlength(text) > size[0] and len(text) > 4:
        text = text[:-4] + "..."
    ImageDraw.Draw(sheet).text((4, size[1] + 4), text, "black", font)
    return sheet


def free_place(
    folder: str | os.PathLike, name: str, suffix: str | None = None
) -> pathlib.Path:
    """Returns a path in a folder for a file that came from somewhere else.

    The folder is made; a name that is taken gets a number.

    Args:
        folder: of the file.
        name: or path of the original.
        suffix: takes the place of the original's.
    """
    folder, source = pathlib.Path(folder), pathlib.Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = source.suffix if suffix is None else suffix
    path = folder / f"{source.stem}{suffix}"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{source.stem}_{number}{suffix}"
    return path
