"""Models and files of Keras and of this project: .npz, .keras, .h5."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from efficientnetv2.models import naming
from efficientnetv2.models.naming import Block, Slot, WeightsError
from efficientnetv2.models.weights.matching import (
    Source,
    damaged,
    describe,
    match,
)

_ENDS = {
    "stem/conv": "stem_conv",
    "stem/norm": "stem_bn",
    "head/conv": "top_conv",
    "head/norm": "top_bn",
    naming.CLASSIFIER: "predictions",
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


def names(slot: Slot) -> list[str]:
    """Names in `keras.applications`: layer and attribute.

    V1 and V2 name the depthwise layers differently, and Keras 2 and 3 their
    kernels.
    """
    layers = [_ENDS.get(slot.place)]
    if isinstance(slot.part, Block):
        prefix = f"block{slot.part.stage + 1}{chr(97 + slot.part.repeat)}_"
        ends = {
            "depthwise_conv": ["dwconv2", "dwconv"],
            "depthwise_norm": ["bn"],
        }.get(
            slot.layer,
            [slot.layer.replace("/", "_").replace("norm", "bn")],
        )
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
    """Opens a file; see `weights.load`."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:
            raise damaged(path, "checkpoint", error) from error
        yield from_arrays(arrays, str(path), ema)
    elif path.suffix == ".keras":
        try:
            model = keras.models.load_model(path, compile=False)
        except Exception as error:
            raise damaged(path, "Keras model", error) from error
        yield from_model(model, str(path))
    else:
        import h5py

        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise damaged(path, "HDF5 file", error) from error
        with file:
            yield _from_h5(file, path)


def from_arrays(
    arrays: Mapping[str, np.ndarray], label: str, ema: bool | None = None
) -> Source:
    """Returns the network of a run's checkpoint as a source.

    Args:
        arrays: by the names of `Trainer.state`.
        label: what errors call it.
        ema: see `weights.load`.
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
            f"{label} is not a checkpoint of a run: it has neither ema/ nor "
            "network/."
        )
    return Source(
        label,
        {name: array.shape for name, array in weights.items()},
        weights.__getitem__,
        _own_names,
    )


def from_model(model: keras.Model, label: str) -> Source:
    """Returns a model, ours or of `keras.applications`, as a source."""
    if naming.is_ours(model):
        variables = {s.path: s.variable for s in naming.slots(model)}
        return _from_variables(variables, label, _own_names)
    variables = _variables(model)
    _check(variables, label)
    return _from_variables(variables, label, names)


def _from_variables(
    variables: Mapping[str, keras.Variable],
    label: str,
    names_of: naming.NameFunction,
) -> Source:
    return Source(
        label,
        {name: tuple(v.shape) for name, v in variables.items()},
        lambda name: keras.ops.convert_to_numpy(variables[name]),
        names_of,
    )


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in naming.flat_layers(model)
        for variable in layer.weights
        if "seed_generator" not in variable.path
    }


def _check(found: Mapping, label: str) -> None:
    if "stem_conv/kernel" not in found:
        raise WeightsError(
            f"{label} is not an EfficientNet of keras.applications: it has no "
            f"stem_conv/kernel, but {', '.join(sorted(found)[:3])}."
        )


def _from_h5(file, path: pathlib.Path) -> Source:
    """Weights or models in Keras 2's format, weights in Keras 3's."""
    root = file.get("model_weights", file)
    datasets, names_of = {}, names
    if path.name.endswith(".weights.h5") and "layers/stem/conv" in file:
        names_of = _h5_names

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
        datasets = dict(_keras3_datasets(root))
    if names_of is names:
        _check(datasets, str(path))
    return Source(
        str(path),
        {name: tuple(data.shape) for name, data in datasets.items()},
        lambda name: datasets[name][()],
        names_of,
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
        is_norm = layer.endswith("bn")
        for attribute, number in _ORDER.items():
            of_norm = attribute not in ("kernel", "bias")
            if of_norm == is_norm and str(number) in group:
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
    variables = _variables(target)
    _check(variables, label)
    pairs, problems = match(
        naming.slots(model),
        _from_variables(variables, label, names),
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
        raise WeightsError(describe(label, problems))
    for slot, name in pairs:
        variables[name].assign(keras.ops.convert_to_numpy(slot.variable))
