"""Keeps the remarks of TensorFlow off the screen."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from efficientnetv2 import backend


@contextlib.contextmanager
def importing_tensorflow(
    keras_backend: str | None = "tensorflow",
) -> Iterator[None]:
    """Decides on the backend, and keeps TensorFlow's remarks off the screen.

    Args:
        keras_backend: what Keras then runs on, see `backend.choose`.
    """
    backend.choose(keras_backend)
    with importing():
        yield


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Keeps TensorFlow's remarks off the screen while it is imported.

    TensorFlow announces its kernels and missing CUDA drivers before its log
    level is read. What it wrote is shown if the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        yield
        return
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
