"""Names of classes: their file, and how two lists of them are compared.

The file has one name per line, in the order of the labels. A folder of images
may have one; a run and a SavedModel leave one.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from efficientnetv2.data.listing import normal_form
from efficientnetv2.declarative import declarative_dir
from efficientnetv2.errors import DataError, nearest

FILE = "class_names.txt"
_SYNSET = re.compile(r"n\d{8}")
# Lists up to this length are shown whole.
_SHOWN = 24


def to_text(names: Iterable[str]) -> str:
    """Returns the content of the file."""
    return "".join(f"{name}\n" for name in names)


def read(path: str | os.PathLike) -> list[str]:
    """Returns the names of a file.

    Raises:
        OSError, UnicodeDecodeError: if it cannot be read, or is not UTF-8.
    """
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    return text.removesuffix("\n").split("\n") if text else []


def read_table(path: str | os.PathLike) -> dict[str, str]:
    """Returns the classes of a file with a name and, after a tab, words.

    Lines that begin with # are comments; a name without words stands for
    itself.

    Raises:
        OSError, UnicodeDecodeError: see `read`.
    """
    rows = [line.split("\t") for line in read(path) if line[:1] != "#"]
    return {name: (words or [name])[0] for name, *words in rows}


@functools.cache
def _imagenet() -> dict[str, str]:
    return read_table(declarative_dir("datasets") / "imagenet_classes.txt")


def in_words(names: Sequence[str]) -> list[str]:
    """Returns 'tiger cat' for 'n02123159'; any other name stays."""
    if not any(_SYNSET.fullmatch(name) for name in names):
        return list(names)
    return [_imagenet().get(name, name) for name in names]


def folder_name(class_name: str) -> str:
    """Returns a class name as a folder name: 'T-shirt-top'."""
    return normal_form(class_name).replace("/", "-").lstrip(".")


def places(found: Sequence[str], wanted: Sequence[str]) -> list[int]:
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
            near = nearest(name, wanted)
            hint = f" Did you mean {near!r}?" if near and not known else ""
            what = "has several classes" if known else "does not know the class"
            raise DataError(
                f"The model {what} {name!r}.{hint}\n"
                f"{both(wanted, found, 'the model', 'the data')}"
            )
        order.append(known[0])
    return order


def both(
    one: Sequence[str], other: Sequence[str], one_is: str, other_is: str
) -> str:
    """Formats two lists of names for an error; of long ones, what differs."""
    lines = []
    for label, names, others in ((one_is, one, other), (other_is, other, one)):
        shown = [f"{k} {name!r}" for k, name in enumerate(names)]
        if len(names) > _SHOWN:
            shown = [
                text
                for k, text in enumerate(shown)
                if k >= len(others) or names[k] != others[k]
            ][:_SHOWN]
            shown.append("...")
        lines.append(f"  {label}: {len(names):,} classes: {', '.join(shown)}")
    return "\n".join(lines)
