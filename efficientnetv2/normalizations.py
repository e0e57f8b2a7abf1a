"""Normalization of pixel values: one table for all parts of the package.

`data.normalization` names a model's convention:

    v2    EfficientNetV2: (x - 128) / 128, to [-1, 1)
    v1    EfficientNet V1 and V2-B0 to B3: ImageNet's mean and standard
          deviation
    lite  EfficientNet-Lite: (x - 127) / 128
    ft    fine-tuning of the released code: (x / 255 - 0.5) / 0.5

The model (`include_preprocessing`), training, evaluation, prediction and
export take their numbers from here.
"""

# Of red, green and blue in [0, 255]: (x - mean) / deviation.
NORMALIZATIONS = {
    "v2": ((128.0,) * 3, (128.0,) * 3),
    "v1": (
        (255 * 0.485, 255 * 0.456, 255 * 0.406),
        (255 * 0.229, 255 * 0.224, 255 * 0.225),
    ),
    "lite": ((127.0,) * 3, (128.0,) * 3),
    "ft": ((127.5,) * 3, (127.5,) * 3),
}
MODES = tuple(NORMALIZATIONS)
POLICIES = ("randaug", "autoaug", "ra_aa", "cutout")
_PREFIXES = {"effnetv1_": "v1", "ft_": "ft", "lite_": "lite"}
# The released code, and earlier versions, name policy and normalization by
# one string.
PACKED_NAMES = {
    "ft": ("cutout", "ft"),
    "lite": (None, "lite"),
    **{
        prefix + policy: (policy, mode)
        for prefix, mode in _PREFIXES.items()
        for policy in POLICIES[:3]
    },
}


def normalize(images, mode: str):
    """Maps pixel values to the range that a mode trains on.

    Args:
        images: float32 [..., 3], in [0, 255], of any array library.
        mode: one of `MODES`.

    Returns:
        float32 [..., 3], of the same library.
    """
    # Configurations import this module, and do not wait for NumPy.
    import numpy as np

    mean, deviation = map(np.float32, NORMALIZATIONS[mode])
    return (images - mean) / deviation
