"""Weights in and out: other people's checkpoints and one's own.

`load` reads a source whole and compares it with the model before it changes
anything: it either sets every weight or raises and leaves the model as it was.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np

from efficientnetv2.models import naming
from efficientnetv2.models.naming import Slot, WeightsError

_EMA = "ExponentialMovingAverage"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# A weight of a layer by its number in Keras 3's .weights.h5.
_KERAS_ORDER = {
    "conv": ("kernel", "bias"),
    "norm": ("gamma", "beta", "moving_mean", "moving_variance"),
}
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Source:
    """Named arrays of one format.

    Attributes:
        label: what errors call it: the file, or the model's name.
        shapes: of every array, by its name there.
        read: returns an array by its name.
        names: returns the names that a slot may have there.
        convert: brings an array of a slot into our layout; None: it is so.
    """

    label: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    names: naming.NameFunction
    convert: Callable[[Slot, np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load` did.

    Attributes:
        source: where the weights came from.
        loaded: names in the source that were used, by our own names.
        skipped: our names of weights that were left as they were: a
            classifier, where that was asked for.
        unused: names in the source that have no place in the model.
    """

    source: str
    loaded: Mapping[str, str]
    skipped: list[str]
    unused: list[str]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} weights from {self.source}"
        if self.skipped:
            text += f"; left as they were: {', '.join(self.skipped)}"
        if self.unused:
            text += f"; not used: {', '.join(self._grouped_unused())}"
        return text + "."

    @property
    def surprises(self) -> bool:
        """Whether anything but raw copies and slots was left over."""
        return bool(self.skipped) or any(
            not name.endswith(_BOOKKEEPING) for name in self._by_kind()
        )

    def _grouped_unused(self) -> list[str]:
        return [
            f"{count} {kind}" if count > 1 else kind
            for kind, count in self._by_kind().items()
        ]

    def _by_kind(self) -> dict[str, int]:
        """Unused names; those that belong to a weight as one entry a kind."""
        used = set(self.loaded.values())
        kinds: dict[str, int] = {}
        for name in self.unused:
            kind = _kind(name, used)
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds


_BOOKKEEPING = ("(raw)", "(slot)", "global_step", "save_counter" + _VALUE)


def _kind(name: str, used: set[str]) -> str:
    """Returns what an unused name is to the weights that were used."""
    if f"{name}/{_EMA}" in used:
        return "weights (raw)"
    parent, _, slot = name.rpartition("/")
    if parent in used or f"{parent}/{_EMA}" in used:
        return f".../{slot} (slot)"
    owner, separator, slot = name.partition("/.OPTIMIZER_SLOT/")
    if separator and owner + _VALUE in used:
        return f".../{slot.removesuffix(_VALUE)} (slot)"
    if name.endswith(".num_batches_tracked"):
        return ".num_batches_tracked (slot)"
    return name


def load(
    model: keras.Model,
    source: "str | os.PathLike | keras.Model",
    ema: bool | None = None,
    skip_classifier: bool = False,
) -> LoadReport:
    """Sets every weight of a model from a source, by name.

    Args:
        model: built by this package.
        source: one of
            - a checkpoint of the released code, name-based or object-based:
              its prefix, its .index file, or a folder with one;
            - a .h5 file or a model of `keras.applications`;
            - a .safetensors file of PyTorch Image Models
              (`tf_efficientnetv2_*`);
            - a checkpoint of a run (.npz);
            - a .keras file, or a model, of this package.
        ema: take the moving averages (True), the raw weights (False), or the
            averages where there are some (None). Only name-based checkpoints
            and those of runs have both.
        skip_classifier: leave the classifier as it is if the source has none
            or one of another number of classes.

    Returns:
        What was loaded, skipped and not used.

    Raises:
        WeightsError: if the source is not there, cut short or of no known
            format, or if a weight is missing or of another shape. The message
            names the file, the weight and both shapes; the model is
            unchanged.
    """
    naming.slots(model)  # A model that is not ours is an error by itself.
    if not isinstance(source, keras.Model):
        path = pathlib.Path(source).expanduser()
        if path.name.endswith(".weights.h5") and _is_own_h5(path):
            return _load_own_h5(model, path)
    with open_source(source, ema) as opened:
        return assign(model, opened, skip_classifier)


def assign(
    model: keras.Model, source: Source, skip_classifier: bool = False
) -> LoadReport:
    """Sets every weight of a model from an open source; see `load`."""
    pairs, problems = _match(naming.slots(model), source)
    skipped = [
        slot.path
        for slot, _ in problems
        if skip_classifier and slot.is_classifier
    ]
    problems = [pair for pair in problems if pair[0].path not in skipped]
    if problems:
        text = _describe(source.label, [text for _, text in problems])
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


def _match(slots: list[Slot], source: Source):
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
            text = f"{slot.path}: {name} has the shape {shape}, the model"
            problems.append((slot, f"{text} {wanted}"))
            continue
        pairs.append((slot, name))
    return pairs, problems


def _converted(source: Source, slot: Slot, array: np.ndarray) -> np.ndarray:
    return source.convert(slot, array) if source.convert else array


def _describe(label: str, problems: list[str]) -> str:
    more = len(problems) - _LISTED
    lines = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
    return f"{label} does not fit the model, which is unchanged:\n  " + (
        "\n  ".join(lines)
    )


def _read(source: Source, slot: Slot, name: str) -> np.ndarray:
    try:
        array = np.asarray(source.read(name))
    except Exception as error:
        # Every reader has errors of its own for data that is cut short.
        raise WeightsError(
            f"{source.label}: cannot read {name} "
            f"{tuple(source.shapes[name])}: the file is cut short or corrupt "
            f"({_first_line(error)}). The model is unchanged."
        ) from error
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise WeightsError(
            f"{source.label}: {name} holds {array.dtype}, not numbers."
        )
    return _converted(source, slot, array)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def open_source(
    source: "str | os.PathLike | keras.Model", ema: bool | None = None
) -> Iterator[Source]:
    """Opens a source of weights; see `load` for what can be one."""
    if isinstance(source, keras.Model):
        yield _from_model(source, f"model {source.name!r}")
        return
    path = pathlib.Path(source).expanduser()
    label = str(path)
    if path.suffix == ".index" and path.exists():
        path = path.with_suffix("")
    prefix = _tensorflow_prefix(path)
    if prefix is not None:
        yield _from_tensorflow(prefix, ema)
        return
    if not path.exists():
        raise WeightsError(_not_found(path))
    if path.is_dir():
        raise WeightsError(
            f"The folder {label} has no checkpoint: neither a file "
            "'checkpoint' nor one *.index, as the released code writes "
            "them."
        )
    if path.suffix == ".npz":
        yield _from_npz(path, ema)
    elif path.suffix == ".safetensors":
        yield _from_safetensors(path)
    elif path.suffix in (".h5", ".hdf5"):
        with _opened_h5(path) as file:
            yield _from_h5(file, label)
    elif path.suffix == ".keras":
        yield _from_model(_load_keras(path), label)
    elif path.suffix in (".pth", ".pt", ".bin", ".tar", ".pkl"):
        raise WeightsError(
            f"{label}: pickled weights can run code and are not read. Convert "
            "them with safetensors.torch.save_file, or download the model's "
            ".safetensors file."
        )
    else:
        raise WeightsError(
            f"{label} is of no known format: a prefix or .index of a "
            "TensorFlow checkpoint, .h5, .keras, .safetensors or .npz."
        )


def _not_found(path: pathlib.Path) -> str:
    text = f"There are no weights at {path}."
    try:
        there = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f"{text} The folder {path.parent} cannot be read."
    listed = ", ".join(there[:_LISTED]) + (
        ", ..." if len(there) > _LISTED else ""
    )
    return f"{text} In {path.parent}: {listed or 'nothing'}."


# --- TensorFlow checkpoints ------------------------------------------------


def _tensorflow_prefix(path: pathlib.Path) -> str | None:
    """Returns the prefix of a TensorFlow checkpoint, if there is one."""
    if pathlib.Path(f"{path}.index").exists():
        return str(path)
    if not path.is_dir():
        return None
    state = path / "checkpoint"
    if state.is_file():
        match = re.search(
            r'^model_checkpoint_path:\s*"([^"]+)"',
            state.read_text(errors="replace"),
            re.MULTILINE,
        )
        # The name only: the rest is the folder where it was written.
        if match:
            prefix = path / pathlib.PurePosixPath(match[1]).name
            if pathlib.Path(f"{prefix}.index").exists():
                return str(prefix)
            raise WeightsError(
                f"{state} names {match[1]!r}, but {prefix}.index is missing."
            )
    found = sorted(path.glob("*.index"))
    if len(found) > 1:
        raise WeightsError(
            f"{path} holds {len(found)} checkpoints; name one of "
            f"{', '.join(entry.stem for entry in found[:_LISTED])}."
        )
    return str(found[0].with_suffix("")) if found else None


def _from_tensorflow(prefix: str, ema: bool | None) -> Source:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {
            name: tuple(shape)
            for name, shape in reader.get_variable_to_shape_map().items()
        }
    except Exception as error:
        raise WeightsError(
            f"{prefix} is cut short, corrupt or no TensorFlow checkpoint "
            f"({_first_line(error)})."
        ) from error
    graph = "_CHECKPOINTABLE_OBJECT_GRAPH"
    if graph in shapes:
        anchor, suffix = "_stem/_conv_stem/kernel", _VALUE
        names = naming.object_names
        if ema:
            raise WeightsError(
                f"{prefix} is object-based and has no moving averages; load "
                "it with ema=None."
            )
    else:
        anchor, suffix = "stem/conv2d/kernel", ""
        names = naming.reference_names
    scope = _scope(shapes, anchor + suffix, prefix)
    shapes.pop(graph, None)
    averaged = any(name.endswith(f"/{_EMA}") for name in shapes)
    if ema and not averaged:
        raise WeightsError(
            f"{prefix} has no moving averages (*/{_EMA}); load it with "
            "ema=None or False."
        )

    def candidates(slot: Slot) -> list[str]:
        plain = [f"{scope}{name}{suffix}" for name in names(slot)]
        if ema is False or not averaged:
            return plain
        return [f"{name}/{_EMA}" for name in plain] + plain

    return Source(prefix, shapes, reader.get_tensor, candidates)


def _scope(shapes: Mapping, anchor: str, prefix: str) -> str:
    """Returns what stands before the names: 'efficientnetv2-b0/'."""
    scopes = sorted(
        (
            name.removesuffix(anchor)
            for name in shapes
            if name == anchor or name.endswith(f"/{anchor}")
        ),
        key=len,
    )
    if not scopes:
        raise WeightsError(
            f"{prefix} is a TensorFlow checkpoint, but not of an "
            f"EfficientNet of the released code: it has no {anchor}. Its "
            f"variables begin with {', '.join(sorted(shapes)[:3])}."
        )
    return scopes[0]


# --- Keras -----------------------------------------------------------------


def _from_model(model: keras.Model, label: str) -> Source:
    if naming.is_ours(model):
        variables = {s.path: s.variable for s in naming.slots(model)}
        return _from_variables(variables, label, _own_names)
    variables = _keras_variables(model)
    _check_keras(variables, label)
    return _from_variables(variables, label, naming.keras_names)


def _from_variables(
    variables: Mapping[str, keras.Variable],
    label: str,
    names: naming.NameFunction,
) -> Source:
    return Source(
        label,
        {name: tuple(v.shape) for name, v in variables.items()},
        lambda name: keras.ops.convert_to_numpy(variables[name]),
        names,
    )


def _own_names(slot: Slot) -> list[str]:
    return [slot.path]


def _keras_variables(model: keras.Model) -> dict[str, keras.Variable]:
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in naming.flat_layers(model)
        for variable in layer.weights
        if "seed_generator" not in variable.path
    }


def _check_keras(names: Mapping, label: str) -> None:
    if "stem_conv/kernel" not in names:
        raise WeightsError(
            f"{label} is not of an EfficientNet of keras.applications: it has "
            f"no stem_conv/kernel, but {', '.join(sorted(names)[:3])}."
        )


def _load_keras(path: pathlib.Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise WeightsError(
            f"{path} is cut short, corrupt or no Keras model "
            f"({_first_line(error)})."
        ) from error


@contextlib.contextmanager
def _opened_h5(path: pathlib.Path):
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise WeightsError(
            f"{path} is cut short, corrupt or no HDF5 file "
            f"({_first_line(error)})."
        ) from error
    with file:
        yield file


def _from_h5(file, label: str) -> Source:
    """Weights or models in Keras 2's format, weights in Keras 3's."""
    root = file.get("model_weights", file)
    datasets = {}
    if "layer_names" in root.attrs:
        # One group a layer; the weights' last parts are 'kernel:0'.
        for layer in map(_text, root.attrs["layer_names"]):
            for weight in map(_text, root[layer].attrs["weight_names"]):
                attribute = weight.rpartition("/")[2].partition(":")[0]
                datasets[f"{layer}/{attribute}"] = root[layer][weight]
    else:
        datasets = dict(_keras3_datasets(root))
    _check_keras(datasets, label)
    return Source(
        label,
        {name: tuple(data.shape) for name, data in datasets.items()},
        lambda name: datasets[name][()],
        naming.keras_names,
    )


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _keras3_datasets(root) -> Iterator[tuple[str, object]]:
    """Yields 'layer/attribute' and dataset of Keras 3's weights format.

    There, weights are numbered, and each group keeps its layer's name.
    """
    found = []

    def visit(_, item):
        if "name" in item.attrs and hasattr(item, "keys"):
            found.append(item)

    root.visititems(visit)
    for group in found:
        layer = _text(group.attrs["name"])
        kind = "norm" if layer.endswith("bn") else "conv"
        for number, attribute in enumerate(_KERAS_ORDER[kind]):
            if str(number) in group:
                yield f"{layer}/{attribute}", group[str(number)]


def _is_own_h5(path: pathlib.Path) -> bool:
    if not path.exists():
        return False
    with _opened_h5(path) as file:
        return "layers/stem/conv" in file


def _load_own_h5(model: keras.Model, path: pathlib.Path) -> LoadReport:
    names = {slot.path: slot.path for slot in naming.slots(model)}
    before = model.get_weights()
    try:
        model.load_weights(path)
    except Exception as error:
        model.set_weights(before)
        raise WeightsError(
            f"{path} does not fit the model, which is unchanged: "
            f"{_first_line(error)}"
        ) from error
    return LoadReport(str(path), names, [], [])


# --- PyTorch Image Models --------------------------------------------------


def _from_safetensors(path: pathlib.Path) -> Source:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="np")
        shapes = {
            name: tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118, it is no dict
        }
    except Exception as error:
        raise WeightsError(
            f"{path} is cut short, corrupt or no safetensors file "
            f"({_first_line(error)})."
        ) from error
    if "conv_stem.weight" not in shapes:
        raise WeightsError(
            f"{path} is not of an EfficientNet of PyTorch Image Models: it "
            "has no conv_stem.weight, but "
            f"{', '.join(sorted(shapes)[:3]) or 'nothing'}."
        )
    return Source(
        str(path), shapes, file.get_tensor, naming.timm_names, _from_torch
    )


def _from_torch(slot: Slot, array: np.ndarray) -> np.ndarray:
    """From [out, in, height, width] to [height, width, in, out]."""
    if array.ndim == 4:
        # A depthwise kernel: [channels, 1, ...] to [..., channels, 1].
        order = (2, 3, 0, 1) if slot.layer == "depthwise_conv" else (2, 3, 1, 0)
        return array.transpose(order)
    return array.T


# --- Runs of this project --------------------------------------------------


def _from_npz(path: pathlib.Path, ema: bool | None) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise WeightsError(
            f"{path} is cut short, corrupt or no checkpoint "
            f"({_first_line(error)})."
        ) from error
    return from_arrays(arrays, str(path), ema)


def from_arrays(
    arrays: Mapping[str, np.ndarray], label: str, ema: bool | None = None
) -> Source:
    """Returns the network of a run's checkpoint as a source.

    Args:
        arrays: by the names of `Trainer.state`.
        label: what errors call it.
        ema: see `load`.
    """
    averaged = any(name.startswith("ema/") for name in arrays)
    if ema and not averaged:
        raise WeightsError(f"{label} has no moving averages.")
    group = "ema" if averaged and ema is not False else "network"
    weights = {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{group}/") and "seed_generator" not in name
    }
    if not weights:
        raise WeightsError(
            f"{label} is no checkpoint of a run: it has neither ema/ nor "
            "network/."
        )
    return Source(
        label,
        {name: array.shape for name, array in weights.items()},
        weights.__getitem__,
        _own_names,
    )


# --- Weights out -----------------------------------------------------------


def to_keras_applications(model: keras.Model, target: keras.Model) -> None:
    """Copies the weights of a model into one of `keras.applications`.

    Example:

        theirs = keras.applications.EfficientNetV2S(weights=None, classes=10)
        efficientnetv2.to_keras_applications(model, theirs)
        theirs.save_weights("s.weights.h5")

    Args:
        model: from `build_model`.
        target: the same architecture and number of classes. Its own
            preprocessing stays as it is.

    Raises:
        WeightsError: if a weight has no counterpart or another shape, on
            either side; the target is then as it was.
    """
    label = f"model {target.name!r}"
    variables = _keras_variables(target)
    _check_keras(variables, label)
    pairs, problems = _match(
        naming.slots(model),
        _from_variables(variables, label, naming.keras_names),
    )
    problems = [text for _, text in problems]
    preprocessing = tuple(
        f"{layer.name}/"
        for layer in naming.flat_layers(target)
        if isinstance(layer, keras.layers.Normalization)
    )
    set_here = {name for _, name in pairs}
    problems += [
        f"{name} {tuple(variable.shape)}: nothing to set it from"
        for name, variable in variables.items()
        if name not in set_here and not name.startswith(preprocessing)
    ]
    if problems:
        raise WeightsError(_describe(label, problems))
    for slot, name in pairs:
        variables[name].assign(keras.ops.convert_to_numpy(slot.variable))


def to_reference_checkpoint(
    model: keras.Model,
    prefix: str | os.PathLike,
    scope: str | None = None,
    step: int = 0,
) -> pathlib.Path:
    """Writes a name-based checkpoint that the released code reads.

    Each weight is written raw and as a moving average, with the same value,
    and the file 'checkpoint' beside it names it.

    Args:
        model: built by this package.
        prefix: such as 'out/model.ckpt'; the step is added: 'model.ckpt-0'.
        scope: what the released code calls the model; its name by default.
        step: written as global_step.

    Returns:
        The complete prefix.

    Raises:
        WeightsError: if it cannot be written.
    """
    import tensorflow as tf

    prefix = pathlib.Path(f"{prefix}-{step}")
    scope = scope or model.name
    arrays = {"global_step": np.int64(step)}
    for slot in naming.slots(model):
        name = f"{scope}/{naming.reference_names(slot)[0]}"
        array = keras.ops.convert_to_numpy(slot.variable).astype(np.float32)
        arrays[name] = array
        arrays[f"{name}/{_EMA}"] = array
    names = sorted(arrays)
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.constant(arrays[name]) for name in names],
        )
        (prefix.parent / "checkpoint").write_text(
            f'model_checkpoint_path: "{prefix.name}"\n'
            f'all_model_checkpoint_paths: "{prefix.name}"\n'
        )
    except (OSError, tf.errors.OpError) as error:
        raise WeightsError(
            f"Cannot write {prefix}: {_first_line(error)}"
        ) from error
    return prefix
