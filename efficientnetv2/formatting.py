"""Numbers, tables and commands in a readable form."""

import functools
import math
import os
import pathlib
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import TextIO

import tabulate

_COLUMNS = 80


def format_seconds(seconds: float) -> str:
    """Returns '1:02:03', '2:03', or '?' for an unknown time."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"


def format_count(number: float) -> str:
    """Returns a count in three digits: 7.14M, 720M, 8.4B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:#.3g}".rstrip(".") + unit
    return str(int(number))


def terminal_width() -> int:
    """Returns the width of the terminal, 80 where there is none."""
    return shutil.get_terminal_size((_COLUMNS, 24)).columns


def wrapped(text: str, stream: TextIO, indent: str = "  ") -> str:
    """Returns lines as a stream shows them best: wrapped on a terminal.

    Lines that begin with two spaces, such as commands to copy, are left alone.

    Args:
        text: one or several lines.
        stream: that will show it.
        indent: of what follows the first part of a long line.
    """
    if not stream.isatty():
        return text
    fill = functools.partial(
        textwrap.fill,
        width=terminal_width(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = text.split("\n")
    return "\n".join(x if x.startswith("  ") else fill(x) for x in lines)


def align_table(
    rows: Sequence[Sequence[str]],
    left: Collection[int] = (),
    width: int | None = None,
) -> str:
    """Returns rows as lines with aligned columns.

    A header that is too wide is broken at spaces and hyphens. If that is not
    enough, the columns follow in blocks, each beginning with the first column.

    Args:
        rows: of equally many cells, the first being the header.
        left: indices of left-aligned columns; the others are right-aligned.
        width: to fit, by default the terminal's; without a terminal, only the
            header is wrapped, at 80.
    """
    is_cut = width is not None or sys.stdout.isatty()
    width = width or terminal_width()
    everything = range(len(rows[0]))
    if not _fits(text := _aligned(rows, left, everything), width):
        rows = [[_narrow(name) for name in rows[0]], *rows[1:]]
        text = _aligned(rows, left, everything)
    if not is_cut or _fits(text, width):
        return text
    blocks = [[0]]
    for column in everything[1:]:
        wider = [*blocks[-1], column]
        if len(wider) > 2 and not _fits(_aligned(rows, left, wider), width):
            blocks.append([0, column])
        else:
            blocks[-1] = wider
    return "\n\n".join(_aligned(rows, left, each) for each in blocks)


def _aligned(rows, left: Collection[int], shown: Sequence[int]) -> str:
    text = tabulate.tabulate(
        [[row[k] for k in shown] for row in rows],
        tablefmt="plain",
        colalign=["left" if k in left else "right" for k in shown],
        disable_numparse=True,
    )
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _fits(text: str, width: int) -> bool:
    return max(map(len, text.split("\n"))) <= width


def _narrow(name: str) -> str:
    name = name.replace("RandAugment", "Rand-Augment")
    return re.sub(r"-(?=[A-Za-z])", "-\n", name.replace(" ", "\n"))


def command_line() -> str:
    """Returns this process' command as one would type it.

    A command has its name in `sys.argv`, see `cli.start`.
    """
    name, *arguments = sys.argv
    return " ".join([name, *map(shlex.quote, arguments)])


def quote(word: str | os.PathLike) -> str:
    """Quotes a word for a shell."""
    return shlex.quote(os.fspath(word))


def program(name: str = "efficientnetv2") -> str:
    """Returns what to type to run a program of this environment.

    That is its name if the shell finds it by that, else its path, or, for a
    module without a program, Python with the module.
    """
    folder = pathlib.Path(sys.executable).parent
    found = shutil.which(name)
    if found and pathlib.Path(found).parent == folder:
        return name
    path = folder / name
    if not path.exists():
        return f"{program(pathlib.Path(sys.executable).name)} -m {name}"
    return quote(relative_path(path))


def relative_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path relative to the working directory, if it is below it."""
    path = pathlib.Path(path)
    here = os.getcwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def wrap_command(*words: str) -> str:
    """Returns a command to copy, wrapped at 80 columns where possible.

    Its words are as a shell takes them.
    """
    lines = [f"  {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= _COLUMNS - len(" \\"):
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"      {word}")
    return "\n".join(lines)
