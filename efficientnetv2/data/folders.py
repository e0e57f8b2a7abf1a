"""Folders of images: one sub-folder a class.

Either the class folders lie in the folder itself, which is then split by a
rule that depends on the files' names only:

    photos/cat/1.jpg  photos/dog/7.png

or they lie in train/ and validation/ (or val/), and perhaps test/:

    photos/train/cat/1.jpg  photos/validation/cat/2.jpg

The classes are numbered in the order of their folders' names, or as the lines
of a file class_names.txt in the folder name them.

The splits are `train`, `minival` (chooses the best checkpoint), `trainval`
(both) and `eval`. What the folders do not give is taken from the training
images: a tenth for `minival`, a tenth for `eval`, of each class.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
from collections.abc import Mapping

from efficientnetv2.data import class_list
from efficientnetv2.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
_NAMES = {
    "train": ("train", "training"),
    "minival": ("validation", "valid", "val"),
    "eval": ("test", "testing"),
}
_HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class FolderIndex:
    """The images of a folder.

    Attributes:
        class_names: of the class folders, in the order of the labels.
        splits: name to (paths, labels), equally long lists.
    """

    class_names: list[str]
    splits: Mapping[str, tuple[list[str], list[int]]]


def scan(path: str | os.PathLike) -> FolderIndex:
    """Lists the images of a folder; opens none of them.

    Within a process a folder is listed once.

    Raises:
        DataError: if the folder is missing, holds no class folders, a class
            is empty, two classes differ only in upper and lower case, a
            split has no images, or class_names.txt names other classes. The
            message names the folder.
    """
    return _scan(expand(path).absolute())


def expand(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path with the user's home for '~'.

    That of a user who does not exist stays as it is, and is then not found.
    """
    return pathlib.Path(os.path.expanduser(path))


@functools.lru_cache(maxsize=8)
def _scan(root: pathlib.Path) -> FolderIndex:
    if not root.is_dir():
        raise DataError(
            f"There is no folder of images at {root}. Give a folder with one "
            "sub-folder a class, or the name of a dataset."
        )
    entries = _folders(root)
    parts = {
        split: root / by_name[alias]
        for by_name in [{name.casefold(): name for name in entries}]
        for split, aliases in _NAMES.items()
        for alias in aliases
        if alias in by_name
    }
    if "train" in parts and len(parts) > 1:
        listed = {split: _classes(path) for split, path in parts.items()}
    else:
        listed = {"train": _classes(root)}
    folder_names = sorted(listed["train"])
    for split, classes in listed.items():
        unknown = sorted(classes.keys() - set(folder_names))
        if unknown:
            raise DataError(
                f"{parts[split]} has the class {unknown[0]!r}, which "
                f"{parts['train']} has not."
            )
    if len(folder_names) < 2:
        raise DataError(f"{root} has one class only: {folder_names[0]!r}.")
    class_names = folder_names
    names_file = root / class_list.FILE
    if names_file.exists():
        class_names = _read_class_names(names_file, folder_names)
        folder_names = [folder_name(name) for name in class_names]
    if listed.keys() == {"train", "minival"}:
        # What is called validation is what people report.
        listed["eval"] = listed.pop("minival")
    _hold_out(listed)
    listed["trainval"] = {
        name: listed["train"].get(name, []) + listed["minival"].get(name, [])
        for name in folder_names
    }
    splits = {
        split: _flatten(classes, folder_names)
        for split, classes in listed.items()
    }
    for split, (files, _) in splits.items():
        if not files:
            raise DataError(
                f"The split {split!r} of {root} has no images; each class "
                "needs at least three where it is split here."
            )
    return FolderIndex(class_names, splits)


def folder_name(class_name: str) -> str:
    """Returns a class's name as that of a folder: 'T-shirt-top'."""
    return class_name.replace("/", "-").lstrip(".")


def _read_class_names(path: pathlib.Path, found: list[str]) -> list[str]:
    """Returns the lines of a file, of which each names one folder found."""
    try:
        names = class_list.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from None
    named = sorted(map(folder_name, names))
    if named != found:
        wrong = sorted(set(named) ^ set(found)) or [
            name for name in found if named.count(name) > 1
        ]
        raise DataError(
            f"{path} must name each class folder once, a line each: see "
            f"{wrong[0]!r}. Correct it, or remove it to number the classes "
            "in the order of the folders' names."
        )
    return names


def _folders(path: pathlib.Path) -> list[str]:
    try:
        with os.scandir(path) as found:
            return sorted(
                entry.name
                for entry in found
                if entry.is_dir() and not entry.name.startswith(".")
            )
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None


def _classes(path: pathlib.Path) -> dict[str, list[str]]:
    """Returns the sorted images of each class folder."""
    names = _folders(path)
    if not names:
        raise DataError(
            f"{path} has no sub-folders; there must be one a class."
        )
    folded: dict[str, str] = {}
    classes = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"{path} has two folders of one class, {other!r} and "
                f"{name!r}, that differ only in upper and lower case. Merge "
                "them."
            )
        classes[name] = sorted(images_below(path / name))
        if not classes[name]:
            raise DataError(
                f"The class folder {path / name} has no images "
                f"({', '.join(SUFFIXES)}). Remove it, or put some there."
            )
    return classes


def images_below(folder: str | os.PathLike) -> list[str]:
    """Returns the images of a folder and all its sub-folders, in no order.

    What begins with a dot is passed over.
    """
    found = []
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [
            os.path.join(parent, file)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return found


def _hold_out(listed: dict[str, dict[str, list[str]]]) -> None:
    """Moves a part of each class from 'train' to the splits that lack."""
    lacking = [split for split in ("eval", "minival") if split not in listed]
    for split in lacking:
        listed[split] = {}
    for name, files in listed["train"].items():
        # The order of a hash: the same on every machine, and a file stays
        # where it is when others are added, but for those at the margins.
        ordered = sorted(files, key=_order)
        part = math.ceil(_HELD_OUT * len(files))
        if len(files) <= part * len(lacking):
            part = 0
        for split in lacking:
            listed[split][name] = sorted(ordered[:part])
            ordered = ordered[part:]
        listed["train"][name] = sorted(ordered)


def _order(path: str) -> bytes:
    return hashlib.sha256(os.path.basename(path).encode()).digest()


def _flatten(classes, folder_names) -> tuple[list[str], list[int]]:
    files, labels = [], []
    for label, name in enumerate(folder_names):
        of_class = classes.get(name, [])
        files += of_class
        labels += [label] * len(of_class)
    return files, labels
