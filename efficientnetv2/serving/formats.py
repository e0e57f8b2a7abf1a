"""Finds models, formats and images that a user names, without TensorFlow."""

import glob
import importlib.util
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from efficientnetv2 import checkpoints, config, declarative
from efficientnetv2.data import folders
from efficientnetv2.errors import UserError, nearest

# Format to the packages that it needs beyond the project's own.
_PACKAGES = {
    "saved_model": (),
    "keras": (),
    "litert": ("ai-edge-litert",),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
}
FORMATS = tuple(_PACKAGES)
DEFAULT = ("saved_model",)


class ModelError(UserError):
    """A missing model."""


class Location(NamedTuple):
    """A model that was found."""

    # 'saved_model' (a folder), 'keras' (a file), 'run' (a folder) or
    # 'published' (a name, or the path of a YAML file).
    kind: str
    name: str  # or path

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(self.name)


def check_formats(names: Sequence[str]) -> None:
    """Raises a UserError for an unknown format or a missing package."""
    if not names:
        raise UserError(f"No format given. Known: {', '.join(FORMATS)}.")
    for name in names:
        if name not in FORMATS:
            hint = declarative.suggest(name, list(FORMATS))
            raise UserError(f"Unknown format {name!r}.{hint}")
        missing = [
            package
            for package in _PACKAGES[name]
            if importlib.util.find_spec(package.replace("-", "_")) is None
        ]
        if missing:
            raise UserError(
                f"The format {name!r} needs {', '.join(missing)}, which is "
                f"not installed: pip install {' '.join(missing)}"
            )


def find_model(
    model: str | os.PathLike,
    checkpoint: str | None = None,
    weights: str | None = None,
) -> Location:
    """Finds a model; arguments as of `predict`.

    Raises:
        ModelError: if there is none, with what was looked for; or an option
            does not go with it.
    """
    found = _find_model(str(model))
    if checkpoint is not None and found.kind != "run":
        raise ModelError(
            f"--checkpoint is for the folder of a run; {model} is not one."
        )
    if weights is not None and found.kind != "published":
        raise ModelError(
            f"--weights is for the name of a model, such as efficientnetv2-s; "
            f"{model} has its own."
        )
    return found


def _find_model(model: str) -> Location:
    path = pathlib.Path(model).expanduser()
    if path.suffix == ".keras" and path.is_file():
        return Location("keras", str(path))
    if (path / "saved_model.pb").is_file():
        return Location("saved_model", str(path))
    if checkpoints.folder(path).is_dir() and (path / config.FILE).is_file():
        return Location("run", str(path))
    known = declarative.names("models")
    if model in known:
        return Location("published", model)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return Location("published", str(path))
    if path.is_dir():
        raise ModelError(
            f"There is no model in {path}: neither saved_model.pb (a "
            f"SavedModel) nor {config.FILE} and {checkpoints.FOLDER}/ (a run)."
        )
    if path.exists():
        raise ModelError(
            f"{path} is not a model: give the folder of a run or of a "
            "SavedModel, a .keras file, or the YAML file of an architecture."
        )
    near = nearest(model, known)
    hint = f" Did you mean {near!r}?" if near else ""
    raise ModelError(
        f"There is no model {model!r}: no such folder, .keras or YAML file, or "
        f"name in hparams/models/.{hint}"
    )


def find_images(
    names: Sequence[str], skip: Callable[[str, str], None]
) -> list[str]:
    """Returns the files that are meant by files, folders and patterns.

    Args:
        names: files, of any suffix; patterns; folders, which are searched
            with all their sub-folders for the suffixes of `folders.SUFFIXES`.
        skip: called with a name for which there is no file, and the reason.
    """
    found = []
    for name in names:
        path = os.path.expanduser(name)
        if os.path.isdir(path):
            images = sorted(folders.images_below(path))
            reason = (
                "there are no images in this folder, no file that ends in "
                f"{', '.join(folders.SUFFIXES)}"
            )
        elif os.path.exists(path):
            images = [path]
        else:
            images = sorted(glob.glob(path, recursive=True))
            reason = _no_file(path)
        if not images:
            skip(name, reason)
        found += images
    return list(dict.fromkeys(found))


def _no_file(path: str) -> str:
    if glob.has_magic(path):
        return "no file matches"
    parent = os.path.dirname(path) or "."
    try:
        near = nearest(os.path.basename(path), os.listdir(parent))
    except OSError:
        return f"there is no folder {parent}"
    hint = f". Did you mean {os.path.join(parent, near)}?" if near else ""
    return f"there is no such file{hint}"
