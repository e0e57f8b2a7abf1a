"""Numbers and commands as people read them."""

import math
import shlex
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
