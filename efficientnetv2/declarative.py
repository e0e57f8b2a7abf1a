"""The declarative files: hparams/ and datasets/, and YAML by path.

YAML is parsed by the safe loader: it is data, and nothing in it is executed.
"""

import itertools
import os
import pathlib
from typing import Any

import yaml

from efficientnetv2.errors import UserError, did_you_mean

# The safe loader, in C where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SINGULAR = {"studies": "study"}
# Nested deeper, a text overflows the stack of the parser in C. Aliases may
# make a small text as large as this when they are followed.
_DEEPEST = 100
_MOST_VALUES = 1_000_000


class ConfigError(UserError, ValueError):
    """A configuration that names or combines things that do not exist."""


def declarative_dir(name: str) -> pathlib.Path:
    """Returns `hparams` or `datasets`: in a wheel they are in the package."""
    package = pathlib.Path(__file__).resolve().parent
    beside = package.parent / name
    if (package.parent / "setup.cfg").exists() and beside.is_dir():
        return beside
    return package / name


def _folder(kind: str) -> pathlib.Path:
    if kind == "datasets":
        return declarative_dir("datasets")
    return declarative_dir("hparams") / kind


def names(kind: str) -> list[str]:
    """Returns the names of a kind: models, recipes, studies or datasets."""
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def suggest(name: str, valid: list[str]) -> str:
    """Returns ' Did you mean ...? Known: ...' for the end of a message."""
    return f"{did_you_mean(name, valid)} Known: {', '.join(valid)}."


def read_yaml(path: str | os.PathLike) -> dict:
    """Reads a YAML file whose top level is a mapping, or is empty.

    Raises:
        ConfigError: if it is not; or missing or unreadable.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        _check_depth(text)
        content = yaml.load(text, Loader=_LOADER)
        _check_aliases(content)
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration {str(path)!r}: {error.strerror}."
        ) from None
    except (
        yaml.YAMLError,
        ValueError,
        # What the constructors of tags such as !!bool let through.
        AttributeError,
        LookupError,
    ) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} needs sections such as 'train:'.")
    return content


def _check_depth(text: str) -> None:
    start, end = yaml.CollectionStartEvent, yaml.CollectionEndEvent
    depths = itertools.accumulate(
        isinstance(event, start) - isinstance(event, end)
        for event in yaml.parse(text, Loader=_LOADER)
    )
    if len(text) > _DEEPEST and any(depth > _DEEPEST for depth in depths):
        raise ValueError(f"more than {_DEEPEST} levels")


def _check_aliases(content: Any) -> None:
    found = [content]
    for each in found:
        if isinstance(each, (dict, list)):
            found += each.values() if isinstance(each, dict) else each
        if len(found) > _MOST_VALUES:
            raise ValueError("its aliases repeat themselves")


def read_named(kind: str, name: str) -> dict:
    """Returns the content of the file of that name, without its suffix.

    Raises:
        ConfigError: for an unknown name; the message gives the nearest.
    """
    valid = names(kind)
    if name not in valid:
        raise ConfigError(
            f"Unknown {_SINGULAR.get(kind, kind[:-1])} {name!r}."
            + suggest(name, valid)
        )
    return read_yaml(_folder(kind) / f"{name}.yaml")


def comment(kind: str, name: str) -> str:
    """Returns the first sentence of the comment that begins a named file."""
    lines = []
    path = _folder(kind) / f"{name}.yaml"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        lines.append(line.strip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".:") + "."


def named_or_path(kind: str, name: str) -> dict:
    """Returns the content of a named file, or of a YAML file by path."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(name)
    return read_named(kind, name)
