"""What the commands share: flags, help, and errors without a traceback.

A command is a module of `efficientnetv2.commands` with a docstring whose first
line says what it does and whose indented lines show how, and with

    define_flags(values)   defines its flags, and no others
    run(given, words)      does the work; returns the exit status, None for 0
    RARE                   names of flags that only --helpfull shows
"""

import os
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags

from efficientnetv2.data.registry import DEFAULT_DATA_DIR
from efficientnetv2.declarative import suggest
from efficientnetv2.errors import UserError, nearest

_HELP = ("--help", "-h", "-help", "-?", "--helpshort")
_WIDTH = 80


def define_run_flags(values: flags.FlagValues) -> None:
    """Defines the flags that say which run is meant."""
    flags.DEFINE_string(
        "dataset",
        None,
        "Name in datasets/, a folder of images, or a YAML file.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "model_name",
        None,
        "Name in hparams/models/; default: the recipe's.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "recipe",
        None,
        "Name in hparams/recipes/; default: the dataset's. Or a YAML file.",
        flag_values=values,
    )
    define_overrides(values)
    define_data_dir(values)


def define_overrides(values: flags.FlagValues) -> None:
    """Defines --hparam_str."""
    flags.DEFINE_string(
        "hparam_str",
        "",
        "Options, such as train.stages=2,data.ram=10. Or a YAML file; "
        "hparams/base.yaml lists all options.",
        flag_values=values,
    )


def define_data_dir(values: flags.FlagValues) -> None:
    """Defines --data_dir."""
    flags.DEFINE_string(
        "data_dir",
        None,
        f"Folder of the data; default: {DEFAULT_DATA_DIR}.",
        flag_values=values,
    )


def value_of(given: flags.FlagValues, name: str) -> Any:
    """Returns a flag's value, None where the command has no such flag."""
    return given[name].value if name in given else None


def own_flags(command: ModuleType) -> flags.FlagValues:
    """Returns the flags that a command defines."""
    values = flags.FlagValues()
    command.define_flags(values)
    return values


def parse(
    command: ModuleType, arguments: Sequence[str]
) -> tuple[flags.FlagValues, list[str]]:
    """Returns the flags that are given, and the words besides them.

    Raises:
        UserError: for an unknown flag or a value that it does not take.
    """
    values = own_flags(command)
    # Those of absl itself, such as --verbosity and --flagfile.
    values.append_flag_values(flags.FLAGS)
    # Options may stand behind words.
    values.set_gnu_getopt(True)
    try:
        words = values(["", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = nearest(error.flagname, own_flags(command))
        hint = f" Did you mean --{near}?" if near else ""
        raise UserError(
            f"There is no flag --{error.flagname}.{hint} --helpfull lists all."
        ) from None
    except flags.Error as error:
        raise UserError(_explain(str(error), own_flags(command))) from None
    flags.FLAGS.mark_as_parsed()
    return values, words


def _explain(message: str, values: flags.FlagValues) -> str:
    """Returns what is wrong with a flag's value, with the nearest valid one."""
    name, _, rest = message.removeprefix("flag --").partition("=")
    if name not in values:
        return message[0].upper() + message[1:].rstrip(".") + "."
    value, parser = rest.split(": ")[0], values[name].parser
    choices = getattr(parser, "enum_values", None)
    if choices:
        return f"There is no --{name}={value}.{suggest(value, list(choices))}"
    return f"--{name}={value}: expected {parser.syntactic_help}."


def no_words(words: Sequence[str]) -> None:
    """Raises a UserError if there are words besides flags."""
    if words:
        raise UserError(
            f"Unexpected argument {words[0]!r}: options are written "
            "--name=value."
        )


# --- Help -------------------------------------------------------------------


def help_text(program: str, command: ModuleType, full: bool = False) -> str:
    """Returns the help of a command.

    Args:
        program: how the command is called, such as 'efficientnetv2 train'.
        command: its module.
        full: all flags and all of their texts; else a screen of 24 lines of
            80 columns.
    """
    summary, _, rest = command.__doc__.rstrip().partition("\n\n")
    values = own_flags(command)
    if full:
        lines = [f"{program}: {summary}", "", rest, ""]
        for name in values:
            lines += _full_lines(values[name])
        return "\n".join(lines)
    examples = [line for line in rest.splitlines() if line.startswith("  ")]
    rare = getattr(command, "RARE", ())
    rows = [
        (_left(values[name]), _first_sentence(values[name].help))
        for name in values
        if name not in rare
    ]
    more = f" Shows {len(rare)} more." if rare else ""
    rows.append(("--helpfull", f"Explains everything.{more}"))
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:<{width}}  {text}" for left, text in rows]
    return "\n".join([summary, "", *examples, "", *lines])


def _left(flag: flags.Flag) -> str:
    is_switch = isinstance(flag, flags.BooleanFlag)
    return f"--[no]{flag.name}" if is_switch else f"--{flag.name}"


def _first_sentence(text: str) -> str:
    # absl writes the values of an enumeration in front.
    text = text.partition(">: ")[2] or text
    return text.split(". ")[0].rstrip(".") + "."


def _full_lines(flag: flags.Flag) -> list[str]:
    text = flag.help
    if flag.default not in (None, "", False) and "default" not in text:
        text += f" Default: {flag.default_as_str}."
    indent = " " * 6
    return [
        f"  {_left(flag)}",
        *textwrap.wrap(
            text, _WIDTH, initial_indent=indent, subsequent_indent=indent
        ),
    ]


# --- Start ------------------------------------------------------------------


def start(
    command: ModuleType, name: str, arguments: Sequence[str] | None = None
) -> None:
    """Runs a command and exits with its status.

    Args:
        command: its module.
        name: how it is called, such as 'efficientnetv2 train'; takes the
            place of the program's path in `sys.argv`.
        arguments: None for those of the process.

    The status is 0, the `exit_code` of a `UserError`, whose message is
    printed, or 130 after Ctrl-C. If what reads the output has ended, as in
    `--help | head`, it is 1.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    sys.argv = [name, *arguments]
    try:
        try:
            status = _run(command, name, arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would try once more to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _run(command: ModuleType, name: str, arguments: list[str]) -> int:
    flags_alone = arguments
    if "--" in arguments:
        flags_alone = arguments[: arguments.index("--")]
    full = "--helpfull" in flags_alone
    if full or any(each in _HELP for each in flags_alone):
        print(help_text(name, command, full))
        return 0
    try:
        given, words = parse(command, arguments)
        return command.run(given, words) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
