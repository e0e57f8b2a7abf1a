"""Numbers and commands as people read them."""

import math
import os
import pathlib
import shlex
import shutil
import sys


def format_seconds(seconds: float) -> str:
    """Returns '1:02:03', '2:03', or '?' for an unknown time."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"


def command_line() -> str:
    """Returns this process' command as one would type it.

    A command has its name in `sys.argv`, see `cli.start`.
    """
    name, *arguments = sys.argv
    return " ".join([name, *map(shlex.quote, arguments)])


def quote(word: str | os.PathLike) -> str:
    """Returns a word as a shell takes it."""
    return shlex.quote(os.fspath(word))


def program(name: str = "efficientnetv2") -> str:
    """Returns what to type for a program of this environment.

    It is the name alone where the shell finds this environment's program by
    it, else its path, or for `efficientnetv2` Python with its module.
    """
    folder = pathlib.Path(sys.executable).parent
    found = shutil.which(name)
    if found and pathlib.Path(found).parent == folder:
        return name
    path = folder / name
    if not path.exists():
        return f"{program(pathlib.Path(sys.executable).name)} -m {name}"
    if path.is_relative_to(os.getcwd()):
        path = path.relative_to(os.getcwd())
    return quote(path)
