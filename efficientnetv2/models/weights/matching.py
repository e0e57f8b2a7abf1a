"""From named arrays of any format to the weights of a model.

Every weight of a model is a `Slot`: a part of the network, a layer in it and
an attribute. For each foreign format a function maps a slot to its name there;
nothing is matched by order or by shape.
"""

import collections
import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np

from efficientnetv2.errors import WeightsError
from efficientnetv2.models import blocks
from efficientnetv2.models.architecture import flat_layers, is_ours

CLASSIFIER = "logits"
EMA = "ExponentialMovingAverage"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Names in checkpoints that belong to no single weight.
_OPTIMIZER = re.compile(r"(^|/)_?optimizer/|^beta[12]_power$")
_BOOKKEEPING = re.compile(
    r"^global_step$|^save_counter/|(^|/)keras_api/metrics/"
    r"|\.num_batches_tracked$"
)
_LISTED = 8


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
        depthwise = ["depthwise_norm"] * (not self.fused)
        return ["expand_norm"] * self.expands + depthwise + ["project_norm"]


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


def slots(model: keras.Model) -> list[Slot]:
    """Returns every weight of a model of this package.

    Raises:
        WeightsError: if the model was not built by this package.
    """
    layers = flat_layers(model)
    is_block = (blocks.MBConv, blocks.FusedMBConv)
    of_blocks = [layer for layer in layers if isinstance(layer, is_block)]
    if not of_blocks or not is_ours(model):
        raise WeightsError(
            f"{model.name!r} was not built by efficientnetv2.build_model: it "
            "has no stem or no blocks."
        )
    positions = _positions(of_blocks)
    found = []
    for layer in layers:
        if isinstance(layer, is_block):
            part = next(positions)
        elif isinstance(layer, (blocks.Stem, blocks.Head)):
            part = "stem" if isinstance(layer, blocks.Stem) else "head"
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
    return [slot for slot in found if "seed_generator" not in slot.path]


def _positions(layers: Iterable[keras.layers.Layer]) -> Iterator[Block]:
    """Yields where each block stands.

    A stage begins where a block cannot be the repetition of the one before:
    it has a stride, changes the number of channels, or differs in kind,
    kernel size, expansion or squeeze-and-excitation.
    """
    stage, repeat, last = -1, 0, None
    ordinals = collections.Counter()
    for index, layer in enumerate(layers):
        options = layer.get_config()
        fused = isinstance(layer, blocks.FusedMBConv)
        shape = ("kernel_size", "expand_ratio", "se_ratio")
        kind = (fused, *(options[key] for key in shape))
        repeat += 1
        if (
            kind != last
            or options["strides"] > 1
            or options["input_filters"] != options["output_filters"]
        ):
            stage, repeat = stage + 1, 0
        last = kind
        expands = options["expand_ratio"] != 1
        yield Block(index, stage, repeat, ordinals[fused], fused, expands)
        ordinals[fused] += 1


@dataclasses.dataclass(frozen=True)
class Source:
    """Named arrays of one format."""

    label: str  # what errors call it: the file, or the model's name
    shapes: Mapping[str, tuple[int, ...]]  # of every array, by its name there
    read: Callable[[str], np.ndarray]  # returns an array by its name
    names: Callable[[Slot], list[str]]  # that a slot may have there
    # Brings an array of a slot into our layout; by default it is so.
    convert: Callable[[Slot, np.ndarray], np.ndarray] = lambda _, array: array


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading weights did."""

    source: str  # where the weights came from
    loaded: Mapping[str, str]  # our names to names in the source
    # Our names of weights left as they were: a classifier, where asked for.
    skipped: list[str]
    # Names in the source that have no place in the model; of a weight that
    # stands there under several names, only one counts.
    unused: list[str]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} weights from {self.source}"
        if self.skipped:
            text += f"; left as they were: {', '.join(self.skipped)}"
        if self.unused:
            kinds = collections.Counter(
                self._kind(name) or name for name in self.unused
            )
            text += "; not used: " + ", ".join(
                f"{count} {kind}" if count > 1 else kind
                for kind, count in kinds.items()
            )
        return text + "."

    @property
    def surprises(self) -> bool:
        """Whether anything but training's own bookkeeping was left over."""
        return bool(self.skipped) or not all(map(self._kind, self.unused))

    def _kind(self, name: str) -> str:
        """Returns what of a training an unused name is, '' if nothing."""
        used = self.loaded.values()
        parent, _, slot = name.removesuffix(VALUE).rpartition("/")
        owner, separator, _ = name.partition("/.OPTIMIZER_SLOT/")
        if f"{name}/{EMA}" in used:
            return "weights (raw)"
        if (
            parent in used
            or f"{parent}/{EMA}" in used
            or (separator and owner + VALUE in used)
        ):
            return f".../{slot} (optimizer)"
        if _OPTIMIZER.search(name):
            return "variables of the optimizer"
        if _BOOKKEEPING.search(name):
            return "counters and metrics of the training"
        return ""


def assign(
    model: keras.Model, source: Source, skip_classifier: bool = False
) -> LoadReport:
    """Sets every weight of a model from an open source, or none.

    See `efficientnetv2.load_weights`.
    """
    pairs, problems = match_slots(slots(model), source)
    skipped = [
        slot.path
        for slot, _ in problems
        if skip_classifier and slot.is_classifier
    ]
    problems = [pair for pair in problems if pair[0].path not in skipped]
    if problems:
        text = explain(source.label, [text for _, text in problems])
        if all(slot.is_classifier for slot, _ in problems):
            text += (
                "\nOnly the classifier differs: give the same num_classes, or "
                "skip_classifier=True to keep the model's own."
            )
        raise WeightsError(text)
    values = [_read(source, slot, name) for slot, name in pairs]
    for (slot, _), array in zip(pairs, values, strict=True):
        slot.variable.assign(array)
    loaded = {slot.path: name for slot, name in pairs}
    unused = sorted(set(source.shapes) - set(loaded.values()))
    return LoadReport(source.label, loaded, skipped, unused)


def match_slots(found: list[Slot], source: Source):
    """Compares names and shapes, and reads nothing.

    Returns:
        (pairs, problems): slots with their names in the source, and slots with
        what is wrong with them.
    """
    pairs, problems = [], []
    for slot in found:
        wanted = tuple(slot.variable.shape)
        names = source.names(slot)
        name = next((n for n in names if n in source.shapes), None)
        if name is None:
            text = f"{slot.path} {wanted}: there is no {names[0]}"
            problems.append((slot, text))
            continue
        shape = tuple(source.shapes[name])
        if source.convert(slot, np.broadcast_to(0.0, shape)).shape == wanted:
            pairs.append((slot, name))
            continue
        # Our own checkpoints call a weight as the model does.
        where = "" if name.endswith(slot.path) else f"{slot.path}: "
        text = f"{where}{name} has the shape {shape}, the model {wanted}"
        problems.append((slot, text))
    return pairs, problems


def explain(label: str, problems: list[str]) -> str:
    """Returns the first problems as the text of an error."""
    more = len(problems) - _LISTED
    lines = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
    return f"{label} does not fit the model, which is unchanged:\n  " + (
        "\n  ".join(lines)
    )


def listed(names: Sequence[str]) -> str:
    """Returns the first names, for an error."""
    return ", ".join(names[:_LISTED]) + (", ..." if names[_LISTED:] else "")


def _read(source: Source, slot: Slot, name: str) -> np.ndarray:
    try:
        array = np.asarray(source.read(name))
    except Exception as error:
        # Each reader raises its own errors for truncated data.
        raise WeightsError(
            f"{source.label}: cannot read {name} "
            f"{tuple(source.shapes[name])}: the file is truncated or corrupt "
            f"({first_line(error)}). The model is unchanged."
        ) from error
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise WeightsError(
            f"{source.label}: {name} holds {array.dtype}, not numbers."
        )
    return source.convert(slot, array)


def first_line(error: Exception) -> str:
    """Returns what an error of a reader says, for an error of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Converts the errors of a reader, for a file that is no `kind`."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        # Each reader raises its own errors for truncated data.
        raise WeightsError(
            f"{path} is truncated, corrupt or no {kind} ({first_line(error)})."
        ) from error
