"""Models and files of Keras and of this project: .npz, .keras, .h5."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from efficientnetv2.errors import WeightsError
from efficientnetv2.models.architecture import flat_layers, is_ours
from efficientnetv2.models.weights.matching import (
    CLASSIFIER,
    Block,
    Slot,
    Source,
    explain,
    match_slots,
    reading,
    slots,
)

_ENDS = {
    "stem/conv": "stem_conv",
    "stem/norm": "stem_bn",
    "head/conv": "top_conv",
    "head/norm": "top_bn",
    CLASSIFIER: "predictions",
}
# Of a layer, by its number in a .weights.h5 file of Keras 3.
_ORDER = {
    "kernel": 0,
    "bias": 1,
    "gamma": 0,
    "beta": 1,
    "moving_mean": 2,
    "moving_variance": 3,
}


def applications_names(slot: Slot) -> list[str]:
    """Names in `keras.applications`: layer and attribute.

    V1 and V2 name the depthwise layers differently, and Keras 2 and 3 their
    kernels.
    """
    layers = [_ENDS.get(slot.place)]
    if isinstance(slot.part, Block):
        prefix = f"block{slot.part.stage + 1}{chr(97 + slot.part.repeat)}_"
        end = slot.layer.replace("/", "_").replace("norm", "bn")
        ends = {
            "depthwise_conv": ["dwconv2", "dwconv"],
            "depthwise_norm": ["bn"],
        }.get(slot.layer, [end])
        layers = [prefix + end for end in ends]
    attributes = [slot.attribute]
    if slot.layer == "depthwise_conv":
        attributes.append("depthwise_kernel")
    return [
        f"{layer}/{attribute}" for layer in layers for attribute in attributes
    ]


def _own_names(slot: Slot) -> list[str]:
    """Names in checkpoints of runs and in models of this package."""
    return [slot.path]


def _h5_names(slot: Slot) -> list[str]:
    """Names in .weights.h5: there, blocks of one class are numbered."""
    place = slot.place
    if isinstance(slot.part, Block):
        kind = "fused_mb_conv" if slot.part.fused else "mb_conv"
        number = f"_{slot.part.ordinal}" if slot.part.ordinal else ""
        place = f"{kind}{number}/{slot.layer}"
    elif slot.is_classifier:
        place = "dense"
    return [f"layers/{place}/vars/{_ORDER[slot.attribute]}"]


def recognizes(path: pathlib.Path) -> bool:
    """Whether a path is a checkpoint of a run or a file of Keras."""
    return path.suffix in (".npz", ".h5", ".hdf5", ".keras") and path.is_file()


@contextlib.contextmanager
def opened(path: pathlib.Path, ema: bool | None) -> Iterator[Source]:
    """Opens a file; see `load_into`."""
    if path.suffix == ".npz":
        with (
            reading(path, "checkpoint"),
            np.load(path, allow_pickle=False) as file,
        ):
            arrays = {name: file[name] for name in file.files}
        yield from_arrays(arrays, str(path), ema)
    elif path.suffix == ".keras":
        with reading(path, "Keras model"):
            model = keras.models.load_model(path, compile=False)
        yield from_model(model, str(path))
    else:
        import h5py

        with reading(path, "HDF5 file"):
            file = h5py.File(path, "r")
        with file:
            yield _from_h5(file, path)


def from_arrays(
    arrays: Mapping[str, np.ndarray], label: str, ema: bool | None = None
) -> Source:
    """Returns the network of a run's checkpoint as a source.

    The arrays have the names of `Engine.arrays`; errors call it `label`.
    """
    averaged = any(name.startswith("ema/") for name in arrays)
    if ema and not averaged:
        raise WeightsError(f"{label} has no moving averages.")
    group = "ema" if averaged and ema is not False else "network"
    found = {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{group}/") and "seed_generator" not in name
    }
    if not found:
        raise WeightsError(
            f"{label} is not a checkpoint of a run: it has neither ema/ nor "
            "network/."
        )
    return _source(label, found, found.__getitem__, _own_names)


def _source(label: str, found: Mapping, read, names) -> Source:
    shapes = {name: tuple(each.shape) for name, each in found.items()}
    return Source(label, shapes, read, names)


def from_model(model: keras.Model, label: str) -> Source:
    """Returns a model, ours or of `keras.applications`, as a source."""
    names = _own_names
    if is_ours(model):
        variables = {slot.path: slot.variable for slot in slots(model)}
    else:
        names, variables = applications_names, _variables(model, label)
    return _source(
        label,
        variables,
        lambda name: keras.ops.convert_to_numpy(variables[name]),
        names,
    )


def _variables(model: keras.Model, label: str) -> dict[str, keras.Variable]:
    """Returns the weights of a model of `keras.applications` by their names."""
    found = {
        f"{layer.name}/{variable.name}": variable
        for layer in flat_layers(model)
        for variable in layer.weights
        if "seed_generator" not in variable.path
    }
    _check_stem(found, label)
    return found


def _check_stem(found: Mapping, label: str) -> None:
    if "stem_conv/kernel" not in found:
        raise WeightsError(
            f"{label} is not an EfficientNet of keras.applications: it has no "
            f"stem_conv/kernel, but {', '.join(sorted(found)[:3])}."
        )


def _from_h5(file, path: pathlib.Path) -> Source:
    """Weights or models in Keras 2's format, weights in Keras 3's."""
    root = file.get("model_weights", file)
    datasets, names = {}, applications_names
    if path.name.endswith(".weights.h5") and "layers/stem/conv" in file:
        names = _h5_names

        def add(name, item):
            if hasattr(item, "shape") and "seed_gen" not in name:
                datasets[name] = item

        file.visititems(add)
    elif "layer_names" in root.attrs:
        # One group a layer; the weights' last parts are 'kernel:0'.
        for layer in map(_text, root.attrs["layer_names"]):
            for weight in map(_text, root[layer].attrs["weight_names"]):
                attribute = weight.rpartition("/")[2].partition(":")[0]
                datasets[f"{layer}/{attribute}"] = root[layer][weight]
    else:
        root.visititems(lambda _, item: datasets.update(_numbered(item)))
    if names is applications_names:
        _check_stem(datasets, str(path))
    return _source(str(path), datasets, lambda name: datasets[name][()], names)


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _numbered(group) -> Iterator[tuple[str, object]]:
    """Yields 'layer/attribute' and dataset of a layer in Keras 3's format.

    There, weights are numbered, and each group keeps its layer's name.
    """
    if "name" not in group.attrs or not hasattr(group, "keys"):
        return
    layer = _text(group.attrs["name"])
    for attribute, number in _ORDER.items():
        of_norm = attribute not in ("kernel", "bias")
        if of_norm == layer.endswith("bn") and str(number) in group:
            yield f"{layer}/{attribute}", group[str(number)]


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
            either side; the target is then unchanged.
    """
    label = f"model {target.name!r}"
    variables = _variables(target, label)
    pairs, problems = match_slots(slots(model), from_model(target, label))
    problems = [text for _, text in problems]
    preprocessing = tuple(
        f"{layer.name}/"
        for layer in flat_layers(target)
        if isinstance(layer, keras.layers.Normalization)
    )
    set_here = {name for _, name in pairs}
    problems += [
        f"{name} {tuple(variable.shape)}: nothing to set it from"
        for name, variable in variables.items()
        if name not in set_here and not name.startswith(preprocessing)
    ]
    if problems:
        raise WeightsError(explain(label, problems))
    for slot, name in pairs:
        variables[name].assign(keras.ops.convert_to_numpy(slot.variable))
