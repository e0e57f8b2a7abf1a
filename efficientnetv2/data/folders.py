"""Folders of images: one sub-folder per class, see docs/own_data.md.

Either the class folders lie in the folder itself, which is then split by a
rule that depends on each file's name only, or they lie in train/ and val/, and
perhaps test/, or under another common name of these splits.

The splits are `train`, `minival` (chooses the best checkpoint), `trainval`
(both) and `eval`. What the folders do not give is taken from the training
images: about a tenth for `minival`, a tenth for `eval`.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from efficientnetv2.data import listing
from efficientnetv2.data.listing import (
    Listing,
    divide,
    folded,
    normal_form,
    some,
    split_of,
)
from efficientnetv2.errors import DataError, did_you_mean

# Every usual suffix of the formats that `preprocessing.decode` reads.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
    *(".png", ".apng"),
    ".gif",
    *(".bmp", ".dib"),
    ".webp",
)
# Written by file managers, archivers and editors, not by people.
_LITTER = set(
    "thumbs.db ehthumbs.db desktop.ini __macosx @eadir $recycle.bin lost+found "
    ".git .cache .ipynb_checkpoints .thumbnails .trash .dvc".split()
)


def expand(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path with the user's home for '~'.

    That of a user who does not exist stays as it is, and is then not found.
    """
    return pathlib.Path(os.path.expanduser(path))


@dataclasses.dataclass
class _Tree:
    """A folder and all that is below, without hidden files and litter.

    Attributes:
        path: of the folder.
        name: in normal form, see `normal_form`.
        images: names of files.
        others: likewise; 'NAME (broken link)'; '.NAME/', a hidden folder that
            holds images.
        folders: below it.
    """

    path: str
    name: str
    images: list[str]
    others: list[str]
    folders: "list[_Tree]"

    def files(self, kind: str) -> Iterator[str]:
        """Yields the images or others below, relative to the folder."""
        yield from getattr(self, kind)
        for folder in self.folders:
            for name in folder.files(kind):
                yield f"{os.path.basename(folder.path)}/{name}"

    @property
    def has_images(self) -> bool:
        return bool(self.images) or any(f.has_images for f in self.folders)

    @property
    def holds_folders(self) -> bool:
        """Whether there are folders of images below."""
        return any(folder.has_images for folder in self.folders)


def _read(path: str, above: frozenset = frozenset()) -> _Tree:
    """Lists a folder; follows links, but not to a folder that it is in."""
    tree = _Tree(path, normal_form(os.path.basename(path)), [], [], [])
    try:
        status = os.stat(path)
        here = above | {(status.st_dev, status.st_ino)}
        if len(here) == len(above):
            return tree
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = entry.name
            if name.casefold() in _LITTER:
                continue
            if name.startswith("."):
                with contextlib.suppress(OSError):
                    inside = os.listdir(entry.path)
                    if any(n.lower().endswith(SUFFIXES) for n in inside):
                        tree.others.append(f"{name}/")
                continue
            name.encode()
            if entry.is_dir():
                tree.folders.append(_read(entry.path, here))
            elif name.lower().endswith(SUFFIXES) and entry.is_file():
                tree.images.append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                tree.others.append(f"{name} (broken link)")
            else:
                tree.others.append(name)
    except UnicodeEncodeError:
        raise DataError(
            f"{entry.path!r}: the name of a file or folder is not valid UTF-8. "
            "Rename it."
        ) from None
    except OSError as error:
        place = error.filename or path
        raise DataError(f"Cannot read {place}: {error.strerror}.") from None
    return tree


def images_below(folder: str | os.PathLike) -> list[str]:
    """Returns the images of a folder and all its sub-folders, in no order."""
    tree = _read(os.fspath(folder))
    return [os.path.join(tree.path, name) for name in tree.files("images")]


# --- Classes and splits -----------------------------------------------------


@functools.lru_cache(maxsize=8)
def scan(root: pathlib.Path) -> Listing:
    """Lists the images of a folder once, until `registry.forget`; opens none.

    Raises:
        DataError: if it is not clear what are classes and what are splits, or
            they are not as they must be.
    """
    if not root.is_dir():
        raise DataError(
            f"There is no folder of images at {root}. Give a folder with one "
            "sub-folder per class, or the name of a dataset."
        )
    tree = _read(str(root))
    names_file = root / listing.NAMES_FILE
    declared = _declared(names_file) if names_file.exists() else None
    parts, unused = _parts(tree, declared)
    notes = []
    if parts.keys() == {"train"} and parts["train"] is not tree:
        notes.append(
            f"{root} has no validation or test folder beside "
            f"{parts['train'].name}/, so its images are split by their names."
        )
    listed = {
        split: _classes(part, split, declared) for split, part in parts.items()
    }
    found = list(listed["train"])
    _check_classes(parts, listed, found)
    if declared is not None:
        _check_declared(names_file, declared, found)
    class_names = found if declared is None else declared
    labels = {
        listing.folder_name(name): k for k, name in enumerate(class_names)
    }
    entries = {split: [] for split in listed}
    for split, classes in listed.items():
        for name, folder in classes.items():
            for file in folder.files("images"):
                own = f"{name}/{normal_form(file)}"
                path = f"{folder.path}/{file}"
                entries[split].append((labels[name], own, path))
        entries[split].sort()
    notes += _notes_on_files(tree, parts, listed, unused)
    return divide(entries, str(root), class_names, notes)


def _parts(
    tree: _Tree, declared: list[str] | None
) -> tuple[dict[str, _Tree], list[_Tree]]:
    """Returns the folder of each split, and the folders that are in none.

    If the class folders lie in the folder itself, it is the split 'train'.
    """
    folders = tree.folders
    named = {listing.folder_name(name) for name in declared or ()}
    if named and named == {folder.name for folder in folders}:
        return {"train": tree}, []
    alike: dict[str, list[_Tree]] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split:
            alike.setdefault(split, []).append(folder)
    parts = {
        split: of_split
        for split, of_split in alike.items()
        if any(folder.holds_folders for folder in of_split)
    }
    rest = [f for f in folders if f.has_images and not split_of(f.name)]
    if not parts:
        if len(alike) > 1 and not rest:
            names = " and ".join(f"{folder.name}/" for folder in folders)
            raise DataError(
                f"{tree.path}: {names} look like splits, but hold images and "
                "no class folders. Give each one folder per class, such as "
                f"{folders[0].name}/cat. {_if_classes(tree)}"
            )
        return {"train": tree}, []
    for split in alike.keys() - parts.keys():
        folder = alike[split][0]
        there = "images and no class folders" if folder.images else "no images"
        raise DataError(
            f"{folder.path} looks like a split, but holds {there}. Give it "
            "one folder per class, or move it elsewhere. "
            f"{_if_classes(tree)}"
        )
    for split, of_split in alike.items():
        if len(of_split) > 1:
            names = " and ".join(f"{folder.name}/" for folder in of_split)
            raise DataError(
                f"{tree.path} has {names}, which both look like the split "
                f"{split!r}. Merge them, or move one elsewhere."
            )
    if "train" not in parts:
        names = " and ".join(f"{f.name}/" for (f,) in parts.values())
        raise DataError(
            f"{tree.path} has {names}, but no train/. Rename the folder of "
            f"the training images to train. {_if_classes(tree)}"
        )
    direct = [folder for folder in rest if folder.images]
    if len(parts) == 1 and direct:
        raise DataError(
            f"{tree.path} has {parts['train'][0].name}/ with folders of "
            f"images and, beside it, {direct[0].name}/ with images: it is not "
            "clear whether these are splits or classes. Move one of them "
            f"elsewhere. {_if_classes(tree)}"
        )
    return {split: folder for split, (folder,) in parts.items()}, rest


def _if_classes(tree: _Tree) -> str:
    return (
        "If these are classes, write their names into "
        f"{tree.path}/{listing.NAMES_FILE}, one per line."
    )


def _classes(
    tree: _Tree, split: str, declared: list[str] | None
) -> dict[str, _Tree]:
    """Returns the class folders by name, in its order."""
    if not tree.folders:
        count = len(tree.images)
        where = f", but {count:,} images itself" if count else ""
        raise DataError(
            f"{tree.path} has no sub-folders{where}; there must be one per "
            "class. A CSV file of images and labels works, too."
        )
    if len(tree.folders) == 1 and tree.folders[0].holds_folders:
        inner = tree.folders[0]
        raise DataError(
            f"{tree.path} holds one folder only, {inner.name}/, with folders "
            f"of images in it. Give --dataset={inner.path}."
        )
    names: dict[str, str] = {}
    places: dict[str, str] = {}
    classes = {}
    for folder in sorted(tree.folders, key=lambda folder: folder.name):
        name = folder.name
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(
                f"{folder.path!r}: the name of a class has a control "
                "character, such as a line break. Rename the folder."
            )
        other = names.setdefault(folded(name), name)
        if other != name or name in classes:
            raise DataError(
                f"{tree.path} has two folders for one class, {other!r} and "
                f"{name!r}, that differ only in upper and lower case, in "
                "spaces or in how accents are encoded. Merge them."
            )
        other = places.setdefault(os.path.realpath(folder.path), name)
        if other != name:
            raise DataError(
                f"{tree.path}: {other!r} and {name!r} are the same folder, by "
                "a link. An image has one class; remove the link."
            )
        if folder.has_images:
            classes[name] = folder
        elif split == "train":
            kinds = sorted({_kind(name) for name in folder.files("others")})
            but = f", but {some(kinds)}" if kinds else ""
            raise DataError(
                f"The class folder {folder.path} has no images "
                f"({', '.join(SUFFIXES)}){but}. Remove it, or put some there."
            )
        if folder.holds_folders and not folder.images and declared is None:
            inner = [f.name for f in folder.folders if f.has_images]
            raise DataError(
                f"The class folder {folder.path} holds no images, but folders "
                f"of images: {some(inner)}. Move the images up if they are "
                f"all {name!r}. If {name!r} is a split, call it train, val or "
                f"test. {_if_classes(tree)}"
            )
    return classes


def _kind(name: str) -> str:
    if name.endswith("/"):
        return "hidden folder(s) with images"
    return os.path.splitext(name)[1].lower() or "file(s) without a suffix"


def _check_classes(parts, listed, found: list[str]) -> None:
    """Refuses classes that only some split has, and a single class."""
    for split, classes in listed.items():
        for unknown in sorted(classes.keys() - set(found))[:1]:
            raise DataError(
                f"{parts[split].path} has the class {unknown!r}, which "
                f"{parts['train'].path} lacks.{did_you_mean(unknown, found)}"
            )
    if len(found) < 2:
        raise DataError(
            f"{parts['train'].path} has one class only: {found[0]!r}. "
            "Each class needs a folder of its own."
        )


def _declared(path: pathlib.Path) -> list[str]:
    try:
        return [normal_form(name) for name in listing.read_names(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from None


def _check_declared(
    path: pathlib.Path, names: list[str], found: list[str]
) -> None:
    """Checks that each name matches exactly one folder found."""
    named = sorted(map(listing.folder_name, names))
    if named != sorted(found):
        wrong = sorted(set(named) ^ set(found)) or [
            name for name in found if named.count(name) > 1
        ]
        raise DataError(
            f"{path} must name each class folder once, one per line: see "
            f"{wrong[0]!r}. Correct it, or remove it to number the classes "
            "in the order of the folders' names."
        )


def _notes_on_files(tree, parts, listed, unused) -> list[str]:
    notes = []
    left_out = [
        name
        for name in tree.files("others")
        if os.path.basename(name) != listing.NAMES_FILE
    ]
    stray = [
        f"{each.name}/{n}" for each in unused for n in each.files("images")
    ]
    stray += tree.images
    for part in parts.values():
        if part is not tree:
            stray += [f"{part.name}/{name}" for name in part.images]
    if left_out or stray:
        notes.append(left_out_note(tree.path, left_out, stray))
    nested = [
        f"{name}/{inner.name}/{file}"
        for classes in listed.values()
        for name, folder in classes.items()
        for inner in folder.folders
        for file in inner.files("images")
    ]
    if nested:
        notes.append(
            f"{tree.path}: {len(nested):,} images lie in sub-folders of class "
            f"folders, such as {nested[0]}; they belong to the class."
        )
    return notes


def left_out_note(
    root: str, others: Iterable[str], stray: Sequence[str] = ()
) -> str:
    """Returns the line about files of a folder that are not used.

    `others` have no suffix of an image, `stray` are outside class folders.
    """
    kinds: dict[str, list[str]] = {}
    for name in others:
        kinds.setdefault(_kind(name), []).append(name)
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    if stray:
        ordered.insert(0, ("images outside the class folders", [*stray]))
    counted = [
        f"{len(names):,} {kind} (such as {names[0]})" for kind, names in ordered
    ]
    total = sum(len(names) for _, names in ordered)
    files = "file" if total == 1 else "files"
    return f"{root}: {total:,} {files} left out: {some(counted)}."
