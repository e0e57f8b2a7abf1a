"""Test-time augmentation: one image in several views, whose mean counts."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from efficientnetv2.data import decoding

# Part of the side of an image that a crop keeps.
_PART = 7 / 8


def of_image(data: bytes, kind: str) -> list[bytes]:
    """Returns the views of an encoded image, the image itself first.

    Args:
        data: the encoded image.
        kind: 'flip' adds the mirror image; 'crop' the four corners and the
            centre, each 7/8 of both sides; 'all' these and their mirror
            images.
    """
    pixels = decoding.decode(tf.constant(data), portable=True).numpy()
    chosen = [pixels]
    if kind in ("crop", "all"):
        chosen += _crops(pixels)
    if kind in ("flip", "all"):
        chosen += [view[:, ::-1] for view in chosen]
    return [data, *(tf.io.encode_png(view).numpy() for view in chosen[1:])]


def _crops(pixels: np.ndarray) -> list[np.ndarray]:
    full = pixels.shape[:2]
    height, width = (max(1, round(_PART * side)) for side in full)
    bottom, right = full[0] - height, full[1] - width
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [
        pixels[top : top + height, left : left + width]
        for top, left in [*corners, (bottom // 2, right // 2)]
    ]


def averaging(
    classify: Callable[[Sequence[bytes]], np.ndarray], kind: str
) -> Callable[[Sequence[bytes]], np.ndarray]:
    """Returns a `classify` that gives the mean over the views of each image.

    Args:
        classify: from encoded images to probabilities, [images, classes].
        kind: see `of_image`.
    """

    def classify_views(images):
        views = [of_image(data, kind) for data in images]
        # Batches of images stay as large as they were.
        rows = [classify(list(batch)) for batch in zip(*views, strict=True)]
        return np.mean(rows, axis=0)

    return classify_views
