"""What the commands share: flags, help, and errors without a traceback.

A command is a function decorated by `command`. Its docstring begins with a
summary; its indented lines are examples.
"""

import dataclasses
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from efficientnetv2 import backend
from efficientnetv2.data.registry import DEFAULT_DATA_DIR
from efficientnetv2.declarative import suggest
from efficientnetv2.errors import UserError, nearest
from efficientnetv2.formatting import wrapped
from efficientnetv2.options import OPTIONS

_HELP = ("--help", "-h", "-help", "-?", "--helpshort")
_WIDTH = 80
_DEFINE = {
    **{str: flags.DEFINE_string, list: flags.DEFINE_list},
    **{int: flags.DEFINE_integer, float: flags.DEFINE_float},
    bool: flags.DEFINE_boolean,
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
        name: without the dashes.
        help: the short help shows only its first sentence.
        kind: str, int, float, bool or list.
        default: its value if it is not given.
        choices: the valid values; None for any.
        low, high: the inclusive range of a number.
        option: the option of a run that the flag sets, if any.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    choices: Sequence[str] | None = None
    low: float | None = None
    high: float | None = None
    option: str | None = None

    def define(self, values: flags.FlagValues) -> None:
        """Defines the flag for absl."""
        define, more = _DEFINE[self.kind], {}
        if self.choices:
            define, more = flags.DEFINE_enum, {"enum_values": self.choices}
        if self.kind in (int, float):
            more = {"lower_bound": self.low, "upper_bound": self.high}
        more["flag_values"] = values
        define(self.name, self.default, help=self.help, **more)


def option_flag(name: str, key: str) -> Flag:
    """Returns the flag of an option, with the option's help and choices."""
    option = OPTIONS[key]
    short, _, more = option.help.partition("; ")
    text = f"{short[0].upper()}{short[1:]} ({key})."
    if more:
        text += f" {more[0].upper()}{more[1:]}."
    return Flag(name, text, option.kind, choices=option.choices, option=key)


SWITCHES = {
    name: option_flag(name, f"train.{name}")
    for name in (
        "progressive_image_size",
        "adaptive_randaugment",
        "adaptive_mixing",
        "adaptive_dropout",
        "adaptive_weight_decay",
    )
}
# Flags that several commands have, by name.
SHARED = SWITCHES | {
    flag.name: flag
    for flag in (
        Flag(
            "dataset", "Name in datasets/, a folder of images, or a YAML file."
        ),
        Flag("model_name", "Name in hparams/models/; default: the recipe's."),
        Flag(
            "recipe",
            "Name in hparams/recipes/; default: the dataset's. Or a YAML file.",
        ),
        Flag(
            "hparam_str",
            "Options, such as train.stages=2,data.ram=10. Or a YAML file; "
            "hparams/base.yaml lists all options.",
            default="",
        ),
        Flag(
            "data_dir",
            f"Folder of the data; default: {DEFAULT_DATA_DIR}.",
            option="data.data_dir",
        ),
        Flag("model_dir", "Folder of the run."),
        Flag(
            "checkpoint", "Checkpoint: best (default), last, a step or a file."
        ),
        Flag(
            "weights", "Evaluate these instead of a run: imagenet, or a path."
        ),
        Flag(
            "backend",
            "Backend for training and evaluation: tensorflow or jax. Default: "
            "KERAS_BACKEND, else jax where there is a TPU, else tensorflow.",
            choices=backend.NAMES,
        ),
        Flag(
            "image_size",
            "Side of the images in pixels (eval.isize, train.isize). An image "
            "size that grows starts lower in proportion (data.ibase).",
            kind=int,
        ),
        Flag(
            "adaptive_regularization",
            "All four adaptive_ switches at once; each can still be set.",
            kind=bool,
        ),
        option_flag("epochs", "train.epochs"),
        option_flag("batch_size", "train.batch_size"),
        option_flag("lr", "train.lr_base"),
        option_flag("seed", "train.seed"),
        option_flag("strategy", "runtime.strategy"),
    )
}


class Command:
    """A command, see `command`.

    Attributes:
        flags: of the command, by name.
        RARE: names of flags that only --helpfull shows.
    """

    def __init__(self, function: Callable, given, rare: Sequence[str]):
        self.__doc__ = inspect.cleandoc(function.__doc__)
        self.run = function
        self.flags = {flag.name: flag for flag in given}
        self.RARE = tuple(rare)

    def define_flags(self, values: flags.FlagValues) -> None:
        """Defines the command's flags, and no others."""
        for flag in self.flags.values():
            flag.define(values)


def command(*given: str | Flag, rare: str = "") -> Callable:
    """Returns a decorator that makes a `Command`.

    The function does the work: it takes the parsed flags and the other
    arguments, and returns the exit status, None for 0.

    Args:
        *given: flags, or names of shared ones, separated by spaces.
        rare: names of flags that only --helpfull shows.
    """
    found = []
    for each in given:
        is_flag = isinstance(each, Flag)
        found += [each] if is_flag else map(SHARED.get, each.split())
    return lambda function: Command(function, found, rare.split())


def overrides(given: flags.FlagValues) -> dict[str, Any]:
    """Returns the options that shared flags set, 'section.option' to value."""
    found = {}
    all_ramps = value_of(given, "adaptive_regularization")
    if all_ramps is not None:
        keys = (f.option for n, f in SWITCHES.items() if n.startswith("adap"))
        found.update(dict.fromkeys(keys, all_ramps))
    for name, flag in SHARED.items():
        if flag.option and value_of(given, name) is not None:
            found[flag.option] = given[name].value
    return found


def value_of(given: flags.FlagValues, name: str) -> Any:
    """Returns a flag's value, None where the command has no such flag."""
    return given[name].value if name in given else None


def own_flags(command: Command) -> flags.FlagValues:
    """Returns the flags that a command defines."""
    values = flags.FlagValues()
    command.define_flags(values)
    return values


def parse(
    command: Command, arguments: Sequence[str]
) -> tuple[flags.FlagValues, list[str]]:
    """Returns the parsed flags, and the arguments that are not flags.

    Raises:
        UserError: for an unknown flag or an invalid value.
    """
    values = own_flags(command)
    # absl's own flags, such as --verbosity and --flagfile.
    values.append_flag_values(flags.FLAGS)
    # Flags may follow other arguments.
    values.set_gnu_getopt(True)
    try:
        words = values(["", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = nearest(error.flagname, command.flags)
        hint = f" Did you mean --{near}?" if near else ""
        raise UserError(
            f"Unknown flag --{error.flagname}.{hint} --helpfull lists all."
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
        return f"--{name}={value} is not valid.{suggest(value, list(choices))}"
    return f"--{name}={value}: expected {parser.syntactic_help}."


def no_words(words: Sequence[str]) -> None:
    """Raises a UserError if there are arguments other than flags."""
    if words:
        raise UserError(
            f"Unexpected argument {words[0]!r}: flags are written --name=value."
        )


# --- Help -------------------------------------------------------------------


def help_text(program: str, command: Command, full: bool = False) -> str:
    """Returns the help of a command, called as 'efficientnetv2 train', say.

    That is a screen of 24 lines of 80 columns, or `full`: all flags and texts.
    """
    summary, _, rest = command.__doc__.rstrip().partition("\n\n")
    values = own_flags(command)
    if full:
        lines = [f"{program}: {summary}", "", rest, ""]
        for name in values:
            lines += _full_lines(values[name])
        return "\n".join(lines)
    examples = [line for line in rest.splitlines() if line.startswith("  ")]
    rows = []
    for name in values:
        # absl puts the values of an enumeration first.
        text = values[name].help
        text = (text.partition(">: ")[2] or text).split(". ")[0]
        if name not in command.RARE:
            rows.append((_left(values[name]), text.rstrip(".") + "."))
    more = f", and {len(command.RARE)} more" if command.RARE else ""
    rows.append(("--helpfull", f"Explain every flag in full{more}."))
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:<{width}}  {text}" for left, text in rows]
    return "\n".join([summary, "", *examples, "", *lines])


def _left(flag: flags.Flag) -> str:
    is_switch = isinstance(flag, flags.BooleanFlag)
    return f"--[no]{flag.name}" if is_switch else f"--{flag.name}"


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
    command: Command, name: str, arguments: Sequence[str] | None = None
) -> None:
    """Runs a command and exits with its status.

    That is 0, the `exit_code` of a `UserError`, whose message is printed, or
    130 after Ctrl-C. It is 1 if the reader of the output has gone, as in
    `--help | head`.

    Args:
        name: how it is called, such as 'efficientnetv2 train'; replaces the
            program's path in `sys.argv`.
        arguments: None for those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    sys.argv = [name, *arguments]
    try:
        try:
            status = _run(command, name, arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python tries to write the rest again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def print_error(error: UserError) -> None:
    """Prints a user's error on stderr, wrapped on a terminal."""
    print(wrapped(f"error: {error}", sys.stderr), file=sys.stderr)


def _run(command: Command, name: str, arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else None
    full = "--helpfull" in arguments[:end]
    if full or any(each in _HELP for each in arguments[:end]):
        print(help_text(name, command, full))
        return 0
    try:
        given, words = parse(command, arguments)
        return command.run(given, words) or 0
    except UserError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
