"""From named arrays of any format to the weights of a model."""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from efficientnetv2.models import naming
from efficientnetv2.models.naming import Slot, WeightsError

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
class Source:
    """Named arrays of one format."""

    label: str  # what errors call it: the file, or the model's name
    shapes: Mapping[str, tuple[int, ...]]  # of every array, by its name there
    read: Callable[[str], np.ndarray]  # returns an array by its name
    names: naming.NameFunction  # returns the names that a slot may have there
    # Brings an array of a slot into our layout; None: it is so.
    convert: Callable[[Slot, np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load` did."""

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
            kinds = collections.Counter(map(self._kind, self.unused))
            text += "; not used: " + ", ".join(
                f"{count} {kind or name}" if count > 1 else kind or name
                for (kind, name), count in kinds.items()
            )
        return text + "."

    @property
    def surprises(self) -> bool:
        """Whether anything but training's own bookkeeping was left over."""
        return bool(self.skipped) or any(
            not kind for kind, _ in map(self._kind, self.unused)
        )

    def _kind(self, name: str) -> tuple[str, str]:
        """Returns (what of a training an unused name is, '') or ('', name)."""
        used = self.loaded.values()
        parent, _, slot = name.removesuffix(VALUE).rpartition("/")
        owner, separator, _ = name.partition("/.OPTIMIZER_SLOT/")
        if f"{name}/{EMA}" in used:
            return "weights (raw)", ""
        if parent in used or f"{parent}/{EMA}" in used:
            return f".../{slot} (optimizer)", ""
        if separator and owner + VALUE in used:
            return f".../{slot} (optimizer)", ""
        if _OPTIMIZER.search(name):
            return "variables of the optimizer", ""
        if _BOOKKEEPING.search(name):
            return "counters and metrics of the training", ""
        return "", name


def assign(
    model: keras.Model, source: Source, skip_classifier: bool = False
) -> LoadReport:
    """Sets every weight of a model from an open source; see `load`."""
    pairs, problems = match(naming.slots(model), source)
    skipped = [
        slot.path
        for slot, _ in problems
        if skip_classifier and slot.is_classifier
    ]
    problems = [pair for pair in problems if pair[0].path not in skipped]
    if problems:
        text = describe(source.label, [text for _, text in problems])
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
    used = set(loaded.values())
    unused = sorted(name for name in source.shapes if name not in used)
    return LoadReport(source.label, loaded, skipped, unused)


def match(slots: list[Slot], source: Source):
    """Compares names and shapes, and reads nothing.

    Returns:
        (pairs, problems): of slots and their names in the source, and of
        slots and what is wrong with them.
    """
    pairs, problems = [], []
    for slot in slots:
        wanted = tuple(slot.variable.shape)
        names = source.names(slot)
        name = next((n for n in names if n in source.shapes), None)
        if name is None:
            problems.append(
                (slot, f"{slot.path} {wanted}: there is no {names[0]}")
            )
            continue
        shape = tuple(source.shapes[name])
        if _converted(source, slot, np.broadcast_to(0.0, shape)).shape != (
            wanted
        ):
            # Our own checkpoints call a weight as the model does.
            where = "" if name.endswith(slot.path) else f"{slot.path}: "
            text = f"{where}{name} has the shape {shape}, the model {wanted}"
            problems.append((slot, text))
            continue
        pairs.append((slot, name))
    return pairs, problems


def _converted(source: Source, slot: Slot, array: np.ndarray) -> np.ndarray:
    return source.convert(slot, array) if source.convert else array


def describe(label: str, problems: list[str]) -> str:
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
    return _converted(source, slot, array)


def first_line(error: Exception) -> str:
    """Returns what an error of a reader says, for an error of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def damaged(
    path: str | os.PathLike, kind: str, error: Exception
) -> WeightsError:
    """Returns an error for a file that cannot be read.

    Args:
        path: of the file.
        kind: what it should have been, such as 'HDF5 file'.
        error: of the reader.
    """
    return WeightsError(
        f"{path} is truncated, corrupt or no {kind} ({first_line(error)})."
    )
