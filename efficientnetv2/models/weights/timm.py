"""PyTorch Image Models: the weights of `tf_efficientnetv2_*` and V1."""

import contextlib
import pathlib
from collections.abc import Iterator

from efficientnetv2.models import naming
from efficientnetv2.models.naming import Block, Slot, WeightsError
from efficientnetv2.models.weights import pytorch, pytorch_v1
from efficientnetv2.models.weights.matching import Source

_ENDS = {
    "stem/conv": "conv_stem",
    "stem/norm": "bn1",
    "head/conv": "conv_head",
    "head/norm": "bn2",
    naming.CLASSIFIER: "classifier",
}


def names(slot: Slot) -> list[str]:
    """Names in PyTorch Image Models."""
    layer = _ENDS.get(slot.place)
    if layer is None:
        layer = f"blocks.{slot.part.stage}.{slot.part.repeat}."
        layer += _layer(slot.part, slot.layer)
    return [f"{layer}.{pytorch.leaf(slot)}"]


def _layer(block: Block, layer: str) -> str:
    if layer in block.norms:
        return f"bn{block.norms.index(layer) + 1}"
    if layer.startswith("se/"):
        return layer.replace("se/", "se.conv_")
    if layer == "depthwise_conv":
        return "conv_dw"
    if layer == "expand_conv":
        return "conv_exp" if block.fused else "conv_pw"
    if block.expands:
        return "conv_pwl"
    return "conv" if block.fused else "conv_pw"


def recognizes(path: pathlib.Path) -> bool:
    """Whether a path is a state dict that is not the port's of V1."""
    return (
        path.suffix in pytorch.SUFFIXES
        and path.is_file()
        and not pytorch_v1.recognizes(path)
    )


@contextlib.contextmanager
def opened(path: pathlib.Path, ema: bool | None) -> Iterator[Source]:
    """Opens a file; see `weights.load`."""
    with pytorch.opened(path, names) as source:
        if "conv_stem.weight" not in source.shapes:
            raise WeightsError(
                f"{path} is not of an EfficientNet of PyTorch Image Models "
                "(conv_stem.weight) or of the PyTorch port of V1 "
                "(_conv_stem.weight), but has "
                f"{', '.join(sorted(source.shapes)[:3]) or 'nothing'}."
            )
        yield source
