"""The arithmetic of normalization, for arrays of every library."""

import numpy as np

from efficientnetv2.models import architecture

V1_MEAN = np.float32([255 * mean for mean in architecture.IMAGENET_MEAN])
V1_STD = np.float32([255 * std for std in architecture.IMAGENET_STD])


def normalize(images, mode: str):
    """Maps pixel values to the range that a mode trains on.

    Args:
        images: float32 [..., 3], in [0, 255].
        mode: one of `preprocessing.MODES`.

    Returns:
        float32 [..., 3], of the same library.
    """
    if mode == "v1":
        return (images - V1_MEAN) / V1_STD
    if mode == "ft":
        return (images / 255.0 - 0.5) / 0.5
    return (images - 128.0) / 128.0
