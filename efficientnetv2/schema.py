"""One validator for all YAML files.

A schema is a dataclass whose fields are made by `option`: the annotation gives
type and choices, the field default, range and meaning. The options of a run
(`options`), dataset files and study files are all checked here.
"""

import ast
import dataclasses
import json
import math
import pathlib
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from efficientnetv2.declarative import ConfigError, suggest

# Above it docs/options.md is written by hand.
_MARK = "<!-- Below: written by `python -m efficientnetv2.options`. -->\n"
# The largest whole number where an option gives no limit.
_LARGEST = 2**31 - 1
_EXPECTED = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    list: "a list, such as crop|flip",
    dict: "a mapping",
}


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    low: float | None = None,
    high: float | None = None,
    check: Callable[[Any], None] | None = None,
    free: bool = False,
) -> Any:
    """Returns a field of a schema.

    Args:
        default: its value where none is given; without one it is required.
        help: what it means, for people.
        low, high: the inclusive range of a number.
        check: raises a ValueError that says what is wrong with a value.
        free: whether a resumed run may change it, because it affects neither
            the data nor the numbers.
    """
    metadata = {
        **{"help": help, "low": low, "high": high},
        **{"check": check, "free": free},
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(
            default_factory=lambda: type(default)(default), metadata=metadata
        )
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Option:
    """The type, range and meaning of a field of a schema.

    Attributes:
        name: such as 'train.epochs'.
        kind: int, float, bool, str, list or dict.
        default: `dataclasses.MISSING` if the option is required.
        nullable: whether null is a value.
        choices: the valid values, or the valid elements of a list; empty if
            there are others.
        help, low, high, check, free: see `option`.
    """

    name: str
    kind: type
    default: Any
    nullable: bool
    choices: tuple
    help: str = ""
    low: float | None = None
    high: float | None = None
    check: Callable[[Any], None] | None = None
    free: bool = False

    @classmethod
    def of(cls, field: dataclasses.Field, prefix: str = "") -> "Option":
        """Returns the option of a field."""
        kind, nullable, choices = field.type, False, ()
        if isinstance(kind, types.UnionType) or (
            typing.get_origin(kind) is typing.Union
        ):
            [kind] = (k for k in typing.get_args(kind) if k is not type(None))
            nullable = True
        if typing.get_origin(kind) is list:
            [element] = typing.get_args(kind)
            kind, choices = list, _choices(element)
        elif choices := _choices(kind):
            kind = type(choices[0])
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        return cls(
            name=prefix + field.name,
            kind=typing.get_origin(kind) or kind,
            default=default,
            nullable=nullable,
            choices=choices,
            **field.metadata,
        )

    def convert(self, value: Any, source: str) -> Any:
        """Returns a value in the type of this option.

        Raises:
            ConfigError: names the source, the option and the valid values.
        """
        if value is None and self.nullable:
            return None
        if value is None and self.kind is list:
            value = []
        value = self._typed(value, source)
        where = f"{source}: {self.name}"
        of_list = self.kind is list
        for each in value if of_list else [value]:
            if self.choices and each not in self.choices:
                what = f" has an unknown {each!r}." if of_list else (
                    f"={each!r} is not valid."
                )  # fmt: skip
                valid = list(self.choices)
                raise ConfigError(where + what + suggest(str(each), valid))
        if self.kind in (int, float):
            self._check_range(value, where)
        if self.check:
            try:
                self.check(value)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
        return value

    def _typed(self, value: Any, source: str) -> Any:
        kind = self.kind
        if kind is float and type(value) in (int, str):
            # YAML 1.1 reads 1e-5 as text.
            try:
                value = float(value)
            except (ValueError, OverflowError):
                pass
        if kind is int and type(value) is float and value.is_integer():
            value = int(value)
        if kind is list and isinstance(value, (str, tuple)):
            value = [value] if isinstance(value, str) else list(value)
        if kind is str and type(value) in (int, float):
            value = str(value)
        if type(value) is not kind or (
            kind is float and not math.isfinite(value)
        ):
            meaning = self.help.partition(";")[0]
            hint = f" Its meaning: {meaning}." if meaning else ""
            raise ConfigError(
                f"{source}: {self.name} must be {_EXPECTED[kind]}, not "
                f"{value!r}.{hint}"
            )
        return value

    def _check_range(self, value: float, where: str) -> None:
        high = self.high
        if high is None and self.kind is int:
            high = _LARGEST
        if self.low is not None and value < self.low:
            raise ConfigError(
                f"{where}={value} is too small; at least {self.low:g}."
            )
        if high is not None and value > high:
            raise ConfigError(
                f"{where}={value} is too large; at most {high:.10g}."
            )


def _choices(kind: Any) -> tuple:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def list_options(schema: type, prefix: str = "") -> dict[str, Option]:
    """Returns the options of a schema by name, in their order."""
    options = (Option.of(field, prefix) for field in dataclasses.fields(schema))
    return {each.name: each for each in options}


def check_values(
    schema: type, content: Any, source: str, leave: tuple = ()
) -> dict:
    """Checks a mapping against a schema.

    Args:
        schema: a dataclass.
        content: read from YAML.
        source: what a message begins with, such as 'dataset photos'.
        leave: names of fields that are not read.

    Returns:
        The values that are given, by field, in the types of the fields.

    Raises:
        ConfigError: for an invalid value, an unknown name or a missing field.
    """
    options = {
        name: each
        for name, each in list_options(schema).items()
        if name not in leave
    }
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source} must be a mapping, not {content!r}.")
    for key in content:
        if key not in options:
            raise ConfigError(
                f"{source}: unknown option {key!r}."
                + suggest(str(key), list(options))
            )
    values = {
        key: options[key].convert(value, source)
        for key, value in content.items()
    }
    for name, each in options.items():
        if each.default is dataclasses.MISSING and name not in values:
            raise ConfigError(f"{source} needs '{name}: ...'.")
    return values


# --- Text -------------------------------------------------------------------


def parse_pairs(
    text: str, source: str, whole: Sequence[str] = ()
) -> dict[str, Any]:
    """Parses 'train.batch_size=64,data.transformations=crop|flip'.

    Args:
        text: values are true, false, null, numbers, text, and lists as
            'crop|flip'. If a key is given twice, the last value counts.
        source: what a message begins with.
        whole: keys to whose values '|' belongs.

    Returns:
        A nested dict.

    Raises:
        ConfigError: if a part is not 'key=value'.
    """
    nested: dict = {}
    for pair in filter(str.strip, text.split(",")):
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(
                f"{source}: {pair.strip()!r} is not of the form key=value. "
                "Lists are written with '|', as in crop|flip."
            )
        section = nested
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"{source}: {parent!r} in {key!r} is an option and not a "
                    "section."
                )
        is_whole = key in whole and "|" in value
        section[leaf] = value.strip() if is_whole else _parse_value(value)
    return nested


def _parse_value(text: str) -> Any:
    text = text.strip()
    if "|" in text:
        return [_parse_value(part) for part in text.split("|")]
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("null", "none", ""):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def flatten(nested: Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns 'section.option' to value."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, dict]:
    """Returns section to options."""
    nested: dict = {}
    for key, value in flat.items():
        section, _, option = key.rpartition(".")
        place = nested.setdefault(section, {}) if section else nested
        place[option] = value
    return nested


# --- Checks ---------------------------------------------------------------


def regular_expression(text: str) -> None:
    """A `check` for regular expressions."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{text!r} is not a regular expression ({error})."
        ) from None


def references(names: list) -> None:
    """A `check` for classes, as module:Class."""
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", str(name)):
            raise ValueError(
                f"{name!r} is not of the form module:Class, such as "
                "my_callbacks:Tracker."
            )


# --- For people -------------------------------------------------------------


def _as_yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 reads 1e-05 as text.
        return text.replace("e", ".0e") if "." not in text else text
    return value if isinstance(value, str) else json.dumps(value)


def _values(each: Option) -> str:
    """Describes the valid values of an option in a few words."""
    words = "|" if each.kind is list else ", "
    kinds = {int: "whole number", float: "number", str: "text", list: "list"}
    text = words.join(map(str, each.choices)) or kinds.get(
        each.kind, "true, false"
    )
    if each.low is not None:
        text += f" from {each.low:g}"
    if each.high is not None:
        text += f" {'up ' * (each.low is None)}to {each.high:g}"
    return f"{text}, null" if each.nullable else text


def base_yaml(sections: Mapping[str, type]) -> str:
    """Returns every option of the sections with its default, explained."""
    lines = [
        "# Every option with its default. A model, a dataset, a recipe,",
        "# --hparam_str and flags, in this order, override single values.",
        "#",
        "# `python -m efficientnetv2.options` writes this file.",
    ]
    for section, schema in sections.items():
        lines += ["", f"{section}:"]
        for name, each in list_options(schema).items():
            left = f"  {name}: {_as_yaml(each.default)}"
            text = each.help
            if each.choices and not all(str(c) in text for c in each.choices):
                text += f" ({', '.join(map(str, each.choices))})"
            comments = textwrap.wrap(text.strip(), 50)
            if comments and len(left) < 28:
                left = f"{left:<28}# {comments.pop(0)}"
            lines.append(left)
            lines += [f"{'':<28}# {comment}" for comment in comments]
    return "\n".join(lines) + "\n"


def to_markdown(sections: Mapping[str, type]) -> str:
    """Returns a table of the options of each section."""
    lines = []
    for section, schema in sections.items():
        lines += [
            *("", f"## {section}", "", schema.__doc__, ""),
            "| option | default | values | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for name, each in list_options(schema, f"{section}.").items():
            cells = (
                f"`{name}`",
                f"`{_as_yaml(each.default)}`",
                _values(each),
                each.help,
            )
            escaped = (cell.replace("|", r"\|") for cell in cells)
            lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def written_files(sections: Mapping[str, type]) -> dict[pathlib.Path, str]:
    """Returns the generated files: path to text."""
    page = pathlib.Path("docs/options.md")
    head = page.read_text(encoding="utf-8").partition(_MARK)[0]
    return {
        pathlib.Path("hparams/base.yaml"): base_yaml(sections),
        page: head + _MARK + to_markdown(sections),
    }
