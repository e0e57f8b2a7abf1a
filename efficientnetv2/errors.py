"""Errors that end a command with one clear message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake by the user, or a problem in the environment.

    The message says what was wrong and what to do. A command that meets one
    prints the message without a traceback and ends with `exit_code`.

    Attributes:
        exit_code: the exit status of the process: 2 for a wrong request, 1 in
            subclasses for failures while carrying it out.
    """

    exit_code = 2


class StrategyError(UserError):
    """Devices or machines that are missing, or cannot do what was asked."""


class DataError(UserError):
    """Data that cannot be obtained, read or written."""


class WeightsError(UserError, ValueError):
    """Weights that cannot be found, read, matched or written."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the valid name closest to `name`, or '' if none is close.

    Case is ignored: `EfficientNetV2-S` finds `efficientnetv2-s`. The end of a
    name will do: `b0` finds `efficientnetv2-b0`, the last name that ends so.

    Args:
        name: what the user wrote.
        valid: the names that exist.
    """
    by_folded = {each.casefold(): each for each in valid}
    folded = name.casefold()
    close = difflib.get_close_matches(folded, by_folded, n=1)
    close = close or [each for each in by_folded if each.endswith(f"-{folded}")]
    return by_folded[close[-1]] if close else ""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' for a message, or '' if no name is close."""
    near = nearest(name, valid)
    return f" Did you mean {near!r}?" if near else ""
