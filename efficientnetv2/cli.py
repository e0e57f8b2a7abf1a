"""What the commands share: errors of users end without a traceback."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable

from efficientnetv2.errors import UserError


def command(
    run: Callable[..., int | None], positional: bool = False
) -> Callable[[list[str]], int]:
    """Returns a main function for `absl.app.run`.

    Args:
        run: does the work after the flags are parsed; returns the exit
            status, None for 0.
        positional: whether the command takes arguments that are no options;
            `run` then gets them as a list.

    Returns:
        A function of argv that returns 0, the `exit_code` of a `UserError`,
        whose message it prints, 130 after Ctrl-C, or 1 if what reads the
        output has ended.
    """

    def main(argv: list[str]) -> int:
        try:
            if positional:
                return run(argv[1:]) or 0
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
        except BrokenPipeError:
            # Python would try once more to write what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1

    return main


@contextlib.contextmanager
def without_native_messages():
    """Keeps what native code writes to stderr off the screen, but for errors.

    TensorFlow announces its kernels and missing CUDA drivers before its log
    level is read.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(screen, kept.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
