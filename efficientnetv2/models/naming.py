"""What a weight of a model is called elsewhere.

Every weight of a model is a `Slot`: a part of the network, a layer in it and
an attribute. For each foreign format a function maps a slot to its name there;
nothing is matched by order or by shape.

Sources of the names: checkpoints of the released code (google/automl), the
models of `keras.applications`, and the `tf_efficientnetv2_*` models of
PyTorch Image Models.
"""

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
    """Where a block stands and which layers it has.

    Attributes:
        index: over all blocks, from 0.
        stage: from 0.
        repeat: in its stage, from 0.
        fused: whether it is a Fused-MBConv.
        expands: whether it has an expanding convolution.
    """

    index: int
    stage: int
    repeat: int
    fused: bool
    expands: bool

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
    """One weight of a model.

    Attributes:
        part: 'stem', 'head', 'logits', or a `Block`.
        layer: in the part: 'conv', 'norm', 'expand_conv', 'se/reduce', ...;
            '' for the classifier, which is a layer itself.
        attribute: 'kernel', 'bias', 'gamma', 'beta', 'moving_mean' or
            'moving_variance'.
        variable: the Keras variable.
    """

    part: str | Block
    layer: str
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
        block = Block(
            self.count,
            self.stage,
            self.repeat,
            isinstance(layer, blocks.FusedMBConv),
            options["expand_ratio"] != 1,
        )
        self.count += 1
        return block


# Layers outside the blocks, by their places.
_OBJECT_ENDS = {
    "stem/conv": "_stem/_conv_stem",
    "stem/norm": "_stem/_norm",
    "head/conv": "_head/_conv_head",
    "head/norm": "_head/_norm",
    CLASSIFIER: "_fc",
}
_KERAS_ENDS = {
    "stem/conv": "stem_conv",
    "stem/norm": "stem_bn",
    "head/conv": "top_conv",
    "head/norm": "top_bn",
    CLASSIFIER: "predictions",
}
_TIMM_ENDS = {
    "stem/conv": "conv_stem",
    "stem/norm": "bn1",
    "head/conv": "conv_head",
    "head/norm": "bn2",
    CLASSIFIER: "classifier",
}


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def reference_names(slot: Slot) -> list[str]:
    """Names in the released code's name-based checkpoints, below the model.

    The classifier is below 'head' or 'head_1', depending on how often the
    graph opened that scope.
    """
    if slot.is_classifier:
        return [f"{head}/dense/{slot.attribute}" for head in ("head_1", "head")]
    norm = "tpu_batch_normalization"
    if not isinstance(slot.part, Block):
        layer = {"conv": "conv2d", "norm": norm}[slot.layer]
        return [f"{slot.part}/{layer}/{slot.attribute}"]
    part, attribute = slot.part, slot.attribute
    if slot.layer in part.convs:
        layer = _numbered("conv2d", part.convs.index(slot.layer))
    elif slot.layer in part.norms:
        layer = _numbered(norm, part.norms.index(slot.layer))
    elif slot.layer == "depthwise_conv":
        layer, attribute = "depthwise_conv2d", "depthwise_kernel"
    else:
        layer = {"se/reduce": "se/conv2d", "se/expand": "se/conv2d_1"}[
            slot.layer
        ]
    return [f"blocks_{part.index}/{layer}/{attribute}"]


def object_names(slot: Slot) -> list[str]:
    """Names in the released code's object-based checkpoints."""
    attribute = slot.attribute
    path = _OBJECT_ENDS.get(slot.place)
    if path is None:
        layer = {
            "se/reduce": "_se/_se_reduce",
            "se/expand": "_se/_se_expand",
            "expand_norm": "_norm0",
            "depthwise_norm": "_norm1",
            "project_norm": "_norm1" if slot.part.fused else "_norm2",
        }.get(slot.layer, f"_{slot.layer}")
        path = f"_blocks/{slot.part.index}/{layer}"
        if slot.layer == "depthwise_conv":
            attribute = "depthwise_kernel"
    return [f"{path}/{attribute}"]


def keras_names(slot: Slot) -> list[str]:
    """Names in `keras.applications`: layer and attribute.

    The depthwise layers are called otherwise in V1 and V2, and their kernel
    otherwise in Keras 2 and 3.
    """
    layers = [_KERAS_ENDS.get(slot.place)]
    if isinstance(slot.part, Block):
        prefix = f"block{slot.part.stage + 1}{chr(97 + slot.part.repeat)}_"
        names = {
            "depthwise_conv": ["dwconv2", "dwconv"],
            "depthwise_norm": ["bn"],
        }.get(
            slot.layer,
            [slot.layer.replace("/", "_").replace("norm", "bn")],
        )
        layers = [prefix + name for name in names]
    attributes = [slot.attribute]
    if slot.layer == "depthwise_conv":
        attributes.append("depthwise_kernel")
    return [
        f"{layer}/{attribute}" for layer in layers for attribute in attributes
    ]


def timm_names(slot: Slot) -> list[str]:
    """Names in PyTorch Image Models."""
    attribute = {
        "kernel": "weight",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }.get(slot.attribute, slot.attribute)
    layer = _TIMM_ENDS.get(slot.place)
    if layer is None:
        layer = f"blocks.{slot.part.stage}.{slot.part.repeat}."
        layer += _timm_layer(slot.part, slot.layer)
    return [f"{layer}.{attribute}"]


def _timm_layer(block: Block, layer: str) -> str:
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
