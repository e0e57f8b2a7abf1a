"""This project's own: checkpoints of runs, and weights by Keras."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from efficientnetv2.models.naming import Block, Slot, WeightsError
from efficientnetv2.models.weights.matching import Source, damaged

# Of a layer, by its number in a .weights.h5 file of Keras 3.
ORDER = {
    "kernel": 0,
    "bias": 1,
    "gamma": 0,
    "beta": 1,
    "moving_mean": 2,
    "moving_variance": 3,
}


def own_names(slot: Slot) -> list[str]:
    """Names in checkpoints of runs."""
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
    return [f"layers/{place}/vars/{ORDER[slot.attribute]}"]


def recognizes(path: pathlib.Path) -> bool:
    """Whether a path is a checkpoint of a run or weights by Keras."""
    if not path.is_file():
        return False
    if not path.name.endswith(".weights.h5"):
        return path.suffix == ".npz"
    with opened_h5(path) as file:
        return "layers/stem/conv" in file


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
        return
    with opened_h5(path) as file:
        found = {}
        file.visititems(
            lambda name, item: (
                found.update({name: item}) if hasattr(item, "shape") else None
            )
        )
        weights = {k: v for k, v in found.items() if "seed_gen" not in k}
        yield Source(
            str(path),
            {name: tuple(data.shape) for name, data in weights.items()},
            lambda name: weights[name][()],
            _h5_names,
        )


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
        own_names,
    )


@contextlib.contextmanager
def opened_h5(path: pathlib.Path):
    """Opens a HDF5 file, or raises a WeightsError."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise damaged(path, "HDF5 file", error) from error
    with file:
        yield file
