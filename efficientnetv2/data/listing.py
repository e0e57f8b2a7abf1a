"""Images that are listed by file, in folders or in a CSV file; their classes.

A CSV file:

    file,label,split
    scans/1.jpg,cat,train
    scans/2.png,dog,test

Paths are relative to the CSV file. Where the second column is called `labels`
an image may have several, joined by '|': 'cat|indoors'. Without the column
`split`, or where it leaves out validation or test, images are chosen by a hash
of their paths, as for folders.

Classes are numbered in the order of their names; if all are whole numbers, in
the order of these. class_names.txt has one name per line, in the order of the
labels. A folder of images may have one; a run and a SavedModel leave one.
"""

import csv
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from efficientnetv2.declarative import declarative_dir
from efficientnetv2.errors import DataError, did_you_mean

NAMES_FILE = "class_names.txt"
_SYNSET = re.compile(r"n\d{8}")
# Lists of classes up to this length are shown whole.
_MOST_CLASSES = 24
_CSV = (".csv", ".tsv")
_ALIASES = {
    "train": "train training trn",
    "minival": "minival validation valid val validate validating dev devel "
    "development",
    "eval": "eval evaluation evaluate evaluating test testing tst holdout "
    "heldout",
}
_SPLIT_OF = {a: split for split, all_ in _ALIASES.items() for a in all_.split()}
# What surrounds such a name: train_set, val2017, test-images.
_DECORATION = re.compile(r"set|sets|split|data|images?|imgs?|photos|files")
# Shares of the unit interval, into which the hash of a name falls.
_HELD_OUT = {"eval": (0.0, 0.1), "minival": (0.1, 0.2)}
# What the header of a CSV file may call a column; the first is ours.
_COLUMNS = {
    "file": "file files filename filenames file_name filepath file_path path "
    "image images image_path img",
    "label": "label class class_name category target",
    "labels": "labels classes categories tags targets",
    "split": "split set subset partition",
}
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class ListedSplit:
    """The images of a split, in three lists of one length.

    Attributes:
        files: paths.
        labels: numbers of classes; tuples of them where an image may have
            several.
        names: relative to the folder, the same on every machine: 'cat/1.jpg'.
    """

    files: list[str]
    labels: list
    names: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def classes(self) -> Iterator[int]:
        """Yields the class of each image, or its classes."""
        for label in self.labels:
            yield from label if isinstance(label, tuple) else (label,)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a dataset.

    Attributes:
        class_names: of the class folders, in the order of the labels.
        splits: by name.
        notes: what the user may not expect, one per line.
        multi_label: whether an image may have several classes.
    """

    class_names: list[str]
    splits: Mapping[str, ListedSplit]
    notes: list[str]
    multi_label: bool = False

    def counts(self, split: str) -> dict[str, int]:
        """Returns the number of images of each class in a split."""
        counts = dict.fromkeys(self.class_names, 0)
        for each in self.splits[split].classes():
            counts[self.class_names[each]] += 1
        return counts


def normal_form(name: str) -> str:
    """Returns a name as NFC, in which systems agree on accents."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """Returns a name without upper case and spaces that nobody sees."""
    return " ".join(normal_form(name).casefold().split())


def is_csv(path: str | os.PathLike) -> bool:
    """Whether a path is a CSV file's."""
    return os.fspath(path).lower().endswith(_CSV)


def split_of(name: str) -> str | None:
    """Returns the split that a folder's name stands for, None for none.

    'Train', 'train_set', 'val2017', 'hold-out' and the like are such names.
    """
    words = re.findall(r"[a-z]+", normal_form(name).casefold())
    joined = "".join(w for w in words if not _DECORATION.fullmatch(w))
    if joined not in _SPLIT_OF:
        joined = re.sub(f"({_DECORATION.pattern})$", "", joined)
    return _SPLIT_OF.get(joined)


def some(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = len(names) - _SHOWN
    text = ", ".join(names[:_SHOWN])
    return f"{text} and {more:,} more" if more > 0 else text


def share(name: str) -> float:
    """Returns a number in [0, 1) that depends on a name alone, by its hash."""
    digest = hashlib.sha256(normal_form(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def divide(
    entries: dict[str, list[tuple]],
    root: str,
    class_names: list[str],
    notes: list[str],
    multi_label: bool = False,
) -> Listing:
    """Returns all splits; missing ones are taken from 'train', by name.

    An image's split depends on its name alone, so that adding images moves
    none.

    Args:
        entries: (label, name, path) of the images of 'train' and perhaps
            'minival' and 'eval', sorted.
        root: of the images, for messages.
        class_names, notes, multi_label: see `Listing`; to the notes a line
            comes for each split that lacks classes.

    Raises:
        DataError: if a split has no images, or a class none for training.
    """
    if entries.keys() == {"train", "minival"}:
        # What is called validation is what people report.
        entries["eval"] = entries.pop("minival")
    lacking = {k: v for k, v in _HELD_OUT.items() if k not in entries}
    parts: dict[str, list] = {split: [] for split in ("train", *lacking)}
    for entry in entries["train"]:
        place = share(entry[1])
        chosen = (k for k, (low, end) in lacking.items() if low <= place < end)
        parts[next(chosen, "train")].append(entry)
    total = len(entries["train"])
    entries |= parts
    remedy = "Add images, or make train/CLASS, val/CLASS and test/CLASS."
    empty = next((split for split, part in entries.items() if not part), None)
    if empty:
        raise DataError(
            f"The split {empty!r} of {root} has no images: a tenth of "
            f"{total:,} is chosen by a hash of each name, and none was. "
            f"{remedy}"
        )
    entries["trainval"] = sorted(entries["train"] + entries["minival"])
    splits = {}
    for split in ("train", "minival", "eval", "trainval"):
        part = entries[split]
        labels, names, paths = map(list, zip(*part, strict=True))
        splits[split] = ListedSplit(paths, labels, names)
        found = set(splits[split].classes())
        lacks = [repr(n) for k, n in enumerate(class_names) if k not in found]
        if lacks and split == "train":
            raise DataError(
                f"{root}: no image of {some(lacks)} is left for training: a "
                "hash of the names chooses the splits, and can miss classes "
                f"with few images. {remedy}"
            )
        if lacks and split != "trainval":
            notes.append(
                f"The split {split!r} of {root} ({len(part):,} images) has no "
                f"image of {some(lacks)}: {len(lacks):,} of "
                f"{len(class_names):,} classes."
            )
    return Listing(class_names, splits, notes, multi_label)


# --- CSV files --------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def scan_csv(path: pathlib.Path) -> Listing:
    """Reads a list of images once, until `registry.forget`; opens none.

    Raises:
        DataError: names the row that is wrong.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except UnicodeDecodeError:
        raise DataError(
            f"Cannot read {path}: it is not UTF-8. Save it as CSV in UTF-8."
        ) from None
    except (OSError, csv.Error) as error:
        raise DataError(f"Cannot read {path}: {error}.") from None
    columns = _find_columns(path, rows[0] if rows else [])
    several = "labels" in columns
    entries: dict[str, list] = {}
    seen: dict[str, int] = {}
    missing = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}, row {number}"
        if len(row) != len(rows[0]):
            raise DataError(
                f"{where}: {len(row)} cells, where the header has "
                f"{len(rows[0])}. Quote what contains {delimiter!r}."
            )
        cells = {name: row[k].strip() for name, k in columns.items()}
        if not cells["file"]:
            raise DataError(f"{where}: no file.")
        place = os.path.normpath(path.parent / cells["file"])
        if not os.path.isfile(place):
            # As Windows writes them.
            place = os.path.normpath(place.replace("\\", "/"))
        # The same wherever the list and its images lie.
        name = normal_form(os.path.relpath(place, path.parent))
        if name in seen:
            raise DataError(
                f"{where}: {cells['file']} is also in row {seen[name]}. "
                "Join several labels by '|' in a column 'labels'."
            )
        seen[name] = number
        if not os.path.isfile(place):
            missing.append(f"{cells['file']} (row {number})")
        labels = _labels(cells, several, where)
        split = split_of(cells.get("split", "train"))
        if split is None:
            raise DataError(
                f"{where}: {cells['split']!r} is not a split: write train, val "
                "or test."
            )
        entries.setdefault(split, []).append((labels, name, place))
    if missing:
        raise DataError(
            f"{path}: {len(missing):,} of {len(seen):,} files are missing, "
            f"such as {some(missing)}. Paths are relative to {path.parent}."
        )
    if "train" not in entries:
        raise DataError(f"{path} lists no images for training.")
    return _index(path, entries, several)


def _find_columns(path: pathlib.Path, header: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, title in enumerate(header):
        for name, aliases in _COLUMNS.items():
            if title.strip().casefold().replace(" ", "_") in aliases.split():
                if name in found:
                    raise DataError(
                        f"{path} has two columns for {name!r}: "
                        f"{header[found[name]]!r} and {title!r}."
                    )
                found[name] = number
    if "file" not in found or ("label" in found) == ("labels" in found):
        raise DataError(
            f"{path} needs a header with the columns 'file' and either "
            "'label' or 'labels' (several, joined by '|'), and perhaps "
            f"'split'; its first line is {','.join(header)[:80]!r}."
        )
    return found


def _labels(cells: dict[str, str], several: bool, where: str) -> list[str]:
    text = cells["labels" if several else "label"]
    labels = text.split("|") if several and text else [text]
    labels = [normal_form(label.strip()) for label in labels]
    if several and not text:
        return []
    if not all(labels) or len(set(labels)) < len(labels):
        raise DataError(f"{where}: {text!r} is not a label.")
    if not several and "|" in text:
        raise DataError(
            f"{where}: {text!r} are several labels. Call the column 'labels' "
            "if an image may have several."
        )
    return labels


def _index(path: pathlib.Path, entries, several: bool) -> Listing:
    every = [labels for part in entries.values() for labels, *_ in part]
    names = sorted({label for labels in every for label in labels})
    if all(name.isdecimal() for name in names):
        names.sort(key=lambda name: (int(name), name))
    if len(names) < 2:
        only = ", ".join(map(repr, names))
        raise DataError(f"{path} has one class only: {only}.")
    notes, alike = [], {}
    for name in names:
        other = alike.setdefault(folded(name), name)
        if other != name:
            notes.append(
                f"{path}: {other!r} and {name!r}, which differ only in upper "
                "and lower case or in spaces, are two classes."
            )
    if several and all(len(labels) < 2 for labels in every):
        joined = next((name for name in names if _is_joined(name, names)), None)
        if joined:
            raise DataError(
                f"{path}: {joined!r} looks like several labels, which are to "
                "be joined by '|'. If each is the name of one class, call the "
                "column 'label'."
            )
        notes.append(
            f"{path}: no image has several labels, though its column allows "
            "it. Call it 'label' if each has exactly one class."
        )
    numbers = {name: k for k, name in enumerate(names)}

    def number(labels):
        found = tuple(sorted(numbers[label] for label in labels))
        return found if several else found[0]

    numbered = {
        split: sorted((number(labels), *rest) for labels, *rest in part)
        for split, part in entries.items()
    }
    return divide(numbered, str(path), names, notes, several)


def _is_joined(name: str, names: list[str]) -> bool:
    """Whether a label looks like several, joined by something else than |."""
    words = name.split()
    are_names = len(words) > 1 and set(words) < set(names)
    return are_names or bool(re.search("[,;/]", name))


# --- Names of classes ---------------------------------------------------------


def names_to_text(names: Iterable[str]) -> str:
    """Returns the content of the file."""
    return "".join(f"{name}\n" for name in names)


def read_names(path: str | os.PathLike) -> list[str]:
    """Returns the names of a file; OSError, UnicodeDecodeError as Python."""
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    return text.removesuffix("\n").split("\n") if text else []


def read_names_in_words(path: str | os.PathLike) -> dict[str, str]:
    """Returns the classes of a file with a name and, after a tab, words.

    Lines that begin with # are comments; a name without words stands for
    itself. For errors see `read_names`.
    """
    rows = [line.split("\t") for line in read_names(path) if line[:1] != "#"]
    return {name: (words or [name])[0] for name, *words in rows}


@functools.cache
def _imagenet() -> dict[str, str]:
    path = declarative_dir("datasets") / "imagenet_classes.txt"
    return read_names_in_words(path)


def in_words(names: Sequence[str]) -> list[str]:
    """Returns 'tiger cat' for 'n02123159'; any other name stays."""
    if not any(_SYNSET.fullmatch(name) for name in names):
        return list(names)
    return [_imagenet().get(name, name) for name in names]


def folder_name(class_name: str) -> str:
    """Returns a class name as a folder name: 'T-shirt-top'."""
    return normal_form(class_name).replace("/", "-").lstrip(".")


def match_names(found: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Returns the index of each name in a list of names.

    Args:
        found: names of classes, or of their folders.
        wanted: known names; each of `found` must be one of them.

    Raises:
        DataError: shows both lists, and names what is not in `wanted`.
    """
    by_name: dict[str, list[int]] = {}
    for place, name in enumerate(wanted):
        for key in {name, folder_name(name)}:
            by_name.setdefault(key, []).append(place)
    order = []
    for name in found:
        known = by_name.get(name) or by_name.get(folder_name(name), [])
        if len(known) != 1:
            hint = "" if known else did_you_mean(name, wanted)
            what = "has several classes" if known else "does not know the class"
            raise DataError(
                f"The model {what} {name!r}.{hint}\n"
                f"{compare_names(wanted, found, 'the model', 'the data')}"
            )
        order.append(known[0])
    return order


def compare_names(
    one: Sequence[str], other: Sequence[str], one_is: str, other_is: str
) -> str:
    """Formats two lists of names for an error; of long ones, what differs."""
    lines = []
    for label, names, others in ((one_is, one, other), (other_is, other, one)):
        few = len(names) <= _MOST_CLASSES
        shown = [
            f"{k} {name!r}"
            for k, name in enumerate(names)
            if few or [name] != list(others[k : k + 1])
        ][:_MOST_CLASSES] + ["..."] * (not few)
        lines.append(f"  {label}: {len(names):,} classes: {', '.join(shown)}")
    return "\n".join(lines)
