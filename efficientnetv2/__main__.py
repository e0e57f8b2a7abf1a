"""The command `efficientnetv2`, also `python -m efficientnetv2`."""

import pathlib
import sys

import efficientnetv2
from efficientnetv2 import cli, commands
from efficientnetv2.declarative import suggest
from efficientnetv2.errors import UserError


def main() -> None:
    """Runs the sub-command that the first argument names."""
    program = "efficientnetv2"
    if pathlib.Path(sys.argv[0]).name == "__main__.py":
        program = "python -m efficientnetv2"
    name, *rest = sys.argv[1:] or ["--help"]
    if name in commands.NAMES:
        cli.start(commands.load_command(name), f"{program} {name}", rest)
    if name == "--version":
        print(efficientnetv2.__version__)
    elif name in ("--help", "-h", "help"):
        print(_overview(program))
    else:
        hint = suggest(name, list(commands.NAMES))
        error = UserError(f"Unknown command {name!r}.{hint}")
        cli.print_error(error)
        sys.exit(error.exit_code)


def _overview(program: str) -> str:
    return "\n".join(
        [
            f"{program} COMMAND [--name=value ...]",
            "",
            *(f"  {name:<12}{text}" for name, text in commands.NAMES.items()),
            "",
            f"For example: {program} train --dataset=fashion_mnist \\",
            "                 --model_dir=runs/fashion_mnist",
            f"{program} COMMAND --help lists the flags of a command.",
        ]
    )


if __name__ == "__main__":
    main()
