"""The weights of a model, by their role.

Every weight of a model is a `Slot`: a part of the network, a layer in it and
an attribute. For each foreign format a function maps a slot to its name there
(see `models.weights`); nothing is matched by order or by shape.
"""

import collections
import dataclasses
from collections.abc import Callable

import keras

from efficientnetv2.errors import UserError
from efficientnetv2.models import blocks

CLASSIFIER = "logits"


class WeightsError(UserError, ValueError):
    """Weights that cannot be found, read, matched or written."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The position of a block, counted from 0, and its layers."""

    index: int  # over all blocks
    stage: int
    repeat: int  # in its stage
    ordinal: int  # among the blocks of its kind
    fused: bool  # whether it is a Fused-MBConv
    expands: bool  # whether it has an expanding convolution

    @property
    def convs(self) -> list[str]:
        """Layers that are plain convolutions, in the order of the data."""
        return ["expand_conv"] * self.expands + ["project_conv"]

    @property
    def norms(self) -> list[str]:
        """Normalization layers, in the order of the data."""
        return (
            ["expand_norm"] * self.expands
            + ["depthwise_norm"] * (not self.fused)
            + ["project_norm"]
        )


@dataclasses.dataclass(frozen=True)
class Slot:
    """One weight of a model."""

    part: str | Block  # 'stem', 'head', 'logits', or a block
    # In the part: 'conv', 'norm', 'expand_conv', 'se/reduce', ...; '' for the
    # classifier, which is a layer itself.
    layer: str
    # 'kernel', 'bias', 'gamma', 'beta', 'moving_mean' or 'moving_variance'.
    attribute: str
    variable: keras.Variable

    @property
    def path(self) -> str:
        """Name in the project's own checkpoints: 'blocks_3/se/reduce/bias'."""
        return f"{self.place}/{self.attribute}"

    @property
    def place(self) -> str:
        """The path of the layer: 'blocks_3/se/reduce', 'logits'."""
        part = self.part
        if isinstance(part, Block):
            part = f"blocks_{part.index}"
        return "/".join(filter(None, (part, self.layer)))

    @property
    def is_classifier(self) -> bool:
        return self.part == CLASSIFIER


NameFunction = Callable[[Slot], list[str]]


def slots(model: keras.Model) -> list[Slot]:
    """Returns every weight of a model of this package.

    Raises:
        WeightsError: if the model was not built by this package.
    """
    found = []
    positions = _Positions()
    for layer in flat_layers(model):
        if isinstance(layer, blocks.Stem):
            part = "stem"
        elif isinstance(layer, blocks.Head):
            part = "head"
        elif isinstance(layer, (blocks.MBConv, blocks.FusedMBConv)):
            part = positions.next(layer)
        elif layer.name == CLASSIFIER:
            part = CLASSIFIER
        else:
            continue
        for variable in layer.weights:
            # 'blocks_3/se/reduce/bias', or the same below the name of a model
            # around it.
            inner = variable.path.split(f"{layer.name}/", 1)[1]
            name, _, attribute = inner.rpartition("/")
            found.append(Slot(part, name, attribute, variable))
    if not positions.count or not any(slot.part == "stem" for slot in found):
        raise WeightsError(
            f"{model.name!r} was not built by efficientnetv2.build_model: it "
            "has no stem or no blocks."
        )
    return [slot for slot in found if "seed_generator" not in slot.path]


def is_ours(model: keras.Model) -> bool:
    """Whether a model was built by this package."""
    return any(isinstance(layer, blocks.Stem) for layer in flat_layers(model))


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model, those of models within it included."""
    found = []
    for layer in model.layers:
        found += flat_layers(layer) if hasattr(layer, "layers") else [layer]
    return found


class _Positions:
    """Counts blocks, stages and repeats.

    A stage begins where a block cannot be the repetition of the one before:
    it has a stride, changes the number of channels, or differs in kind,
    kernel size, expansion or squeeze-and-excitation.
    """

    def __init__(self):
        self.count = 0
        self.stage = -1
        self.repeat = 0
        self.last = None
        self.kinds = collections.Counter()

    def next(self, layer) -> Block:
        options = layer.get_config()
        kind = (
            type(layer).__name__,
            *(
                options[key]
                for key in ("kernel_size", "expand_ratio", "se_ratio")
            ),
        )
        if (
            kind != self.last
            or options["strides"] > 1
            or options["input_filters"] != options["output_filters"]
        ):
            self.stage += 1
            self.repeat = 0
        else:
            self.repeat += 1
        self.last = kind
        fused = isinstance(layer, blocks.FusedMBConv)
        block = Block(
            self.count,
            self.stage,
            self.repeat,
            self.kinds[fused],
            fused,
            options["expand_ratio"] != 1,
        )
        self.count += 1
        self.kinds[fused] += 1
        return block
