"""What the commands share: errors of users end without a traceback."""

import sys
from collections.abc import Callable

from efficientnetv2.errors import UserError


def command(run: Callable[[], int | None]) -> Callable[[list[str]], int]:
    """Returns a main function for `absl.app.run`.

    Args:
        run: does the work after the flags are parsed; returns the exit
            status, None for 0.

    Returns:
        A function of argv that returns 0, the `exit_code` of a `UserError`,
        whose message it prints, or 130 after Ctrl-C.
    """

    def main(argv: list[str]) -> int:
        try:
            if len(argv) > 1:
                raise UserError(
                    f"Unexpected argument {argv[1]!r}: options are written "
                    "--name=value."
                )
            return run() or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130

    return main
