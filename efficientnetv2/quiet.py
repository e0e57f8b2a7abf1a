"""Imports of TensorFlow: without its remarks, and no longer than needed."""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator

from efficientnetv2 import backend

# What TensorFlow and Keras import where it is installed: for a converter, for
# plots and for scikit-learn's interface, which no program here calls.
_UNNEEDED = ("jax", "matplotlib", "sklearn")


@contextlib.contextmanager
def importing_tensorflow(
    keras_backend: str | None = "tensorflow",
) -> Iterator[None]:
    """Decides on the backend, and imports both quickly and quietly.

    For programs: in this process Keras' interface to scikit-learn and its
    pictures are missing. The packages themselves can be imported afterwards.

    Args:
        keras_backend: what Keras then runs on, see `backend.choose`.
    """
    chosen = backend.choose(keras_backend)
    unneeded = {*_UNNEEDED} - {chosen, *sys.modules}
    # Python takes a module that is None for one that is not installed.
    sys.modules.update(dict.fromkeys(unneeded))
    gc.disable()
    try:
        with importing():
            yield
    finally:
        for name in unneeded:
            sys.modules.pop(name, None)
        # What is imported stays: the collector need not look at it, ever.
        gc.freeze()
        gc.enable()


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
