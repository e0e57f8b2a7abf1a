"""From pixel values to what a network is trained on: one table for all.

A model's configuration names its convention by `data.augname`:

    default  EfficientNetV2: (x - 128) / 128, to [-1, 1)
    ft       fine-tuning of the released code: (x / 255 - 0.5) / 0.5
    v1       EfficientNet V1 and V2-B0 to B3 (prefix 'effnetv1_'): ImageNet's
             mean and standard deviation
    lite     EfficientNet-Lite (prefix 'lite_'): (x - 127) / 128

The model (`include_preprocessing`), training, evaluation, prediction and
export take their numbers from here.
"""

from collections.abc import Mapping

# Of red, green and blue in [0, 255]: (x - mean) / deviation.
NORMALIZATIONS = {
    "default": ((128.0,) * 3, (128.0,) * 3),
    "ft": ((127.5,) * 3, (127.5,) * 3),
    "v1": (
        (255 * 0.485, 255 * 0.456, 255 * 0.406),
        (255 * 0.229, 255 * 0.224, 255 * 0.225),
    ),
    "lite": ((127.0,) * 3, (128.0,) * 3),
}
MODES = tuple(NORMALIZATIONS)
POLICIES = ("randaug", "autoaug", "ra_aa")
_PREFIXES = {"effnetv1_": "v1", "ft_": "ft", "lite_": "lite"}
_ALONE = {"ft": ("ft", "cutout"), "lite": ("lite", None)}
AUGNAMES = (
    *POLICIES,
    *(prefix + policy for prefix in _PREFIXES for policy in POLICIES),
    *_ALONE,
)


def parse_augname(augname: str | None) -> tuple[str, str | None]:
    """Splits 'effnetv1_autoaug' into the mode 'v1' and the policy 'autoaug'.

    Returns:
        (mode, policy): one of `MODES`; None, 'randaug', 'autoaug', 'ra_aa' or
        'cutout', the latter for 'ft' alone.

    Raises:
        ValueError: for any other name.
    """
    if not augname:
        return "default", None
    if augname in POLICIES:
        return "default", augname
    if augname in _ALONE:
        return _ALONE[augname]
    for prefix, mode in _PREFIXES.items():
        policy = augname.removeprefix(prefix)
        if policy != augname and policy in POLICIES:
            return mode, policy
    raise ValueError(
        f"Unknown data.augname {augname!r}: use null or one of "
        f"{', '.join(AUGNAMES)}."
    )


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


def mode_of(config: Mapping[str, Mapping]) -> str:
    """Returns the mode of a configuration, of a model alone or of a run."""
    return parse_augname(config["data"]["augname"])[0]
