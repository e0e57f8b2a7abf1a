"""The file of the names of the classes: one a line, in the order of labels.

A folder of images may have one; a run and a SavedModel leave one.
"""

import os
import pathlib
from collections.abc import Iterable

FILE = "class_names.txt"


def to_text(names: Iterable[str]) -> str:
    """Returns the content of the file."""
    return "".join(f"{name}\n" for name in names)


def read(path: str | os.PathLike) -> list[str]:
    """Returns the names of a file.

    Raises:
        OSError: if it cannot be read.
        UnicodeDecodeError: if it is no UTF-8.
    """
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n") if text else []
