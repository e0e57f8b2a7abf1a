"""A CSV file that lists images and their labels.

    file,label,split
    scans/1.jpg,cat,train
    scans/2.png,dog,test

Paths are relative to the CSV file. Where the second column is called `labels`
an image may have several, joined by '|': 'cat|indoors'. Without the column
`split`, or where it leaves out validation or test, images are chosen by a hash
of their paths, as for folders.

Classes are numbered in the order of their names; if all are whole numbers, in
the order of these.
"""

import csv
import functools
import os
import pathlib

from efficientnetv2.data import listing
from efficientnetv2.data.listing import Listing
from efficientnetv2.errors import DataError

SUFFIXES = (".csv", ".tsv")
# What the header may call a column; the first is ours.
_COLUMNS = {
    "file": "file files filename filenames file_name filepath file_path path "
    "image images image_path img",
    "label": "label class class_name category target",
    "labels": "labels classes categories tags targets",
    "split": "split set subset partition",
}
_SHOWN = 3


@functools.lru_cache(maxsize=8)
def scan(path: pathlib.Path) -> Listing:
    """Reads a list of images; opens none of them.

    A list is read once until `registry.forget` is called.

    Raises:
        DataError: if the file cannot be read or has no such columns, a row
            has no file, label or known split, a file is listed twice or is
            not there, or a split has no images. The message names the row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
        # The same wherever the list and its images lie.
        name = listing.normal_form(os.path.relpath(place, path.parent))
        if name in seen:
            raise DataError(
                f"{where}: {cells['file']} stands in row {seen[name]}, too. "
                "Join several labels by '|' in a column 'labels'."
            )
        seen[name] = number
        if not os.path.isfile(place):
            missing.append(f"{cells['file']} (row {number})")
        labels = _labels(cells, several, where)
        split = "train"
        if "split" in cells:
            split = listing.split_of(cells["split"])
            if split is None:
                raise DataError(
                    f"{where}: {cells['split']!r} is no split: write train, "
                    "val or test."
                )
        entries.setdefault(split, []).append((labels, name, place))
    if missing:
        raise DataError(
            f"{path}: {len(missing):,} of {len(seen):,} files are not there, "
            f"such as {', '.join(missing[:_SHOWN])}. Paths are relative to "
            f"{path.parent}."
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
    labels = [listing.normal_form(label.strip()) for label in labels]
    if several and not text:
        return []
    if not all(labels) or len(set(labels)) < len(labels):
        raise DataError(f"{where}: {text!r} is no label.")
    if not several and "|" in text:
        raise DataError(
            f"{where}: {text!r} are several labels. Call the column 'labels' "
            "if an image may have several."
        )
    return labels


def _index(path: pathlib.Path, entries, several: bool) -> Listing:
    names = sorted(
        {
            label
            for part in entries.values()
            for labels, *_ in part
            for label in labels
        }
    )
    if all(name.isdecimal() for name in names):
        names.sort(key=lambda name: (int(name), name))
    if len(names) < 2:
        raise DataError(
            f"{path} has one class only: {', '.join(map(repr, names))}."
        )
    numbers = {name: k for k, name in enumerate(names)}

    def number(labels):
        found = tuple(sorted(numbers[label] for label in labels))
        return found if several else found[0]

    numbered = {
        split: sorted((number(labels), *rest) for labels, *rest in part)
        for split, part in entries.items()
    }
    splits = listing.divide(numbered, str(path), names)
    notes = listing.notes_on_classes(splits, names, str(path))
    return Listing(names, splits, notes, several)
