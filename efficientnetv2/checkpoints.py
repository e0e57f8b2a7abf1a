"""Checkpoints, written atomically: the last few and the best.

A checkpoint is one .npz file of named arrays and a JSON text `meta`. It is
written next to its final place, flushed and renamed, so a file under a final
name is complete; the CRC-32 of each array is verified on reading.
"""

import dataclasses
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from efficientnetv2.files import CheckpointError, write_atomically

FOLDER = "checkpoints"
BEST = "best.npz"
_READ_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, TypeError),
    zipfile.BadZipFile,
)
_NAME = re.compile(r"ckpt-(\d{8})\.npz")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        arrays: by the names of `Engine.arrays`.
        meta: of the run at that step; 'step' is always there.
        path: where it was read.
    """

    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    path: pathlib.Path


def folder(model_dir: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a run's checkpoints."""
    return pathlib.Path(model_dir) / FOLDER


def list_steps(model_dir: str | os.PathLike) -> list[int]:
    """Returns the steps of a run's checkpoints, ascending."""
    try:
        names = os.listdir(folder(model_dir))
    except FileNotFoundError:
        return []
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)


def path_of_step(model_dir: str | os.PathLike, step: int) -> pathlib.Path:
    """Returns the file of the checkpoint at a step."""
    return folder(model_dir) / f"ckpt-{step:08d}.npz"


def save(
    model_dir: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    keep: int,
) -> pathlib.Path:
    """Writes a checkpoint and removes the oldest beyond `keep`."""
    path = path_of_step(model_dir, meta["step"])
    _write(path, arrays, meta)
    for step in list_steps(model_dir)[:-keep]:
        path_of_step(model_dir, step).unlink(missing_ok=True)
    return path


def save_best(
    model_dir: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> None:
    """Writes the best checkpoint, replacing the one before."""
    _write(folder(model_dir) / BEST, arrays, meta)


def _write(path, arrays, meta):
    content = {"meta": np.array(json.dumps(dict(meta))), **arrays}
    write_atomically(path, lambda file: np.savez(file, **content))


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a whole checkpoint.

    Raises:
        CheckpointError: if there is none, or it is truncated or corrupt.
    """
    path = pathlib.Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        meta["step"]
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint {path}.") from None
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{path} is truncated, corrupt or not a checkpoint ({error})."
        ) from error
    return Checkpoint(arrays, meta, path)


def load_latest(model_dir: str | os.PathLike, log=print) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole; None if there is none."""
    for step in reversed(list_steps(model_dir)):
        try:
            return read_checkpoint(path_of_step(model_dir, step))
        except CheckpointError as error:
            log(f"{error} Using the previous one.")
    return None


def find_checkpoint(
    model_dir: str | os.PathLike, name: str | None
) -> pathlib.Path:
    """Returns the file of a checkpoint by name.

    Args:
        name: None or 'best' for the best one, else the last; 'last'; a step;
            or a path.

    Raises:
        CheckpointError: if there is none; the message lists what there is.
    """
    steps = list_steps(model_dir)
    best = folder(model_dir) / BEST
    if name in (None, "best") and best.exists():
        return best
    if name in (None, "best", "last") and steps:
        return path_of_step(model_dir, steps[-1])
    if name and name.isdigit() and int(name) in steps:
        return path_of_step(model_dir, int(name))
    if name and pathlib.Path(name).is_file():
        return pathlib.Path(name)
    wanted = f"checkpoint {name!r}" if name else "checkpoint"
    available = ", ".join(map(str, steps)) or "none"
    raise CheckpointError(
        f"There is no {wanted} in {folder(model_dir)}. Steps there: "
        f"{available}; best: {'yes' if best.exists() else 'no'}. Train first, "
        "or name another --model_dir or --checkpoint."
    )


def read_named(model_dir: str | os.PathLike, name: str | None) -> Checkpoint:
    """Reads a run's checkpoint by name; see `find_checkpoint`."""
    return read_checkpoint(find_checkpoint(model_dir, name))
