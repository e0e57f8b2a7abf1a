"""What the commands share: errors of users end without a traceback."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging

from efficientnetv2 import backend
from efficientnetv2.data.registry import DEFAULT_DATA_DIR
from efficientnetv2.declarative import suggest
from efficientnetv2.errors import UserError

# The flags that are defined here belong to the command that calls.
flags.disclaim_key_flags()


def define_run_flags() -> None:
    """Defines the flags that say which run is meant."""
    flags.DEFINE_string(
        "dataset", None, "Name in datasets/, such as fashion_mnist."
    )
    flags.DEFINE_string(
        "model_name", None, "Name in hparams/models/; default: the recipe's."
    )
    flags.DEFINE_string(
        "recipe",
        None,
        "Name in hparams/recipes/, or a YAML file; default: the dataset's.",
    )
    flags.DEFINE_string(
        "hparam_str",
        "",
        "Overrides, such as train.batch_size=64,data.ram=10, or a YAML file; "
        "hparams/base.yaml lists all options.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        f"Folder of the data; default: {DEFAULT_DATA_DIR}.",
    )


def command(
    run: Callable[..., int | None],
    actions: Sequence[str] = (),
    positional: bool = False,
) -> Callable[[list[str]], int]:
    """Returns a main function for `start`.

    Args:
        run: does the work after the flags are parsed; returns the exit
            status, None for 0. With `actions` it takes one of them, or None.
        actions: words of which one may be given besides flags.
        positional: whether any words may be given besides flags; `run` takes
            them as a list.

    Returns:
        A function of argv that returns 0, the `exit_code` of a `UserError`,
        whose message it prints, or 130 after Ctrl-C.
    """

    def main(argv: list[str]) -> int:
        try:
            if positional:
                return run(argv[1:]) or 0
            if not actions:
                _check_words(argv[1:])
                return run() or 0
            action = argv[1] if argv[1:] else None
            if action is not None and action not in actions:
                raise UserError(
                    f"Unknown action {action!r}.{suggest(action, actions)}"
                )
            _check_words(argv[2:])
            return run(action) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130

    return main


def start(main: Callable[[list[str]], int]) -> None:
    """Parses the flags, calls a main function and exits with its status.

    If what reads the output has ended, as in `--help | head`, the status is 1.
    """
    try:
        try:
            app.run(main)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would try once more to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _check_words(words: Sequence[str]) -> None:
    if words:
        raise UserError(
            f"Unexpected argument {words[0]!r}: options are written "
            "--name=value."
        )


@contextlib.contextmanager
def importing_tensorflow(
    keras_backend: str | None = "tensorflow",
) -> Iterator[None]:
    """Keeps TensorFlow's remarks off the screen while it is imported.

    TensorFlow announces its kernels and missing CUDA drivers before its log
    level is read. What it wrote is shown if the import fails.

    Args:
        keras_backend: what Keras then runs on, see `backend.choose`.
    """
    backend.choose(keras_backend)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    with without_native_messages():
        yield


@contextlib.contextmanager
def without_native_messages() -> Iterator[None]:
    """Keeps what is written to stderr off the screen, but for errors."""
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
