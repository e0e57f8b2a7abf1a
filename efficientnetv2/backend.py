"""The Keras backend: choosing it, importing it, and reining in the other one.

Keras decides when it is imported, so `choose` comes first. Both backends use
TensorFlow for `tf.data`; when JAX trains, TensorFlow must not take the devices'
memory.
"""

import contextlib
import gc
import glob
import importlib
import importlib.util
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from efficientnetv2.errors import UserError, nearest

NAMES = ("tensorflow", "jax")
_INSTALL_JAX = (
    "pip install 'jax[tpu]' on a TPU, pip install 'jax[cuda12]' on an NVIDIA "
    "GPU, else pip install jax"
)
# Imported by TensorFlow and Keras if installed, for a converter, plots and the
# scikit-learn wrappers, which no program here uses.
_UNNEEDED = ("jax", "matplotlib", "sklearn")


class BackendError(UserError):
    """A backend that is unknown, not installed, or chosen too late."""


class ChildError(UserError):
    """A child process failed; its output says why."""

    exit_code = 1


def choose(name: str | None = None) -> str:
    """Decides on the backend of this process.

    Args:
        name: 'tensorflow' or 'jax'; None: KERAS_BACKEND, else JAX where there
            is a TPU, else TensorFlow.

    Returns:
        The backend.

    Raises:
        BackendError: if it is neither of these, is not installed, or Keras was
            imported with another one.
    """
    source = f"--backend={name}"
    if name is None:
        name = os.environ.get("KERAS_BACKEND") or None
        source = f"KERAS_BACKEND={name}"
    if name is None:
        name = "jax" if has_tpu() else "tensorflow"
        source = "This machine has a TPU, which needs JAX" * (name == "jax")
    if name not in NAMES:
        near = nearest(name, NAMES) or "tensorflow"
        raise BackendError(
            f"{source}: training runs on {' or '.join(NAMES)}. Use "
            f"--backend={near}."
        )
    if name == "jax" and not importlib.util.find_spec("jax"):
        raise BackendError(
            f"{source}, but JAX is not installed: {_INSTALL_JAX}."
        )
    if not importlib.util.find_spec("tensorflow"):
        raise BackendError(
            "TensorFlow is not installed; its tf.data prepares the images "
            "on every backend. Run pip install 'tensorflow-cpu>=2.20,<2.21' "
            "where there is a TPU, else pip install 'tensorflow>=2.20,<2.22'."
        )
    if "keras" in sys.modules and active() != name:
        raise BackendError(
            f"{source} comes too late: Keras already runs on {active()} in "
            "this process. Set KERAS_BACKEND before Keras is imported."
        )
    os.environ["KERAS_BACKEND"] = name
    return name


def active() -> str:
    """Returns the backend that Keras runs on in this process.

    Raises:
        BackendError: if nothing here runs on it.
    """
    import keras

    name = keras.config.backend()
    if name not in NAMES:
        raise BackendError(
            f"Keras runs on {name}; training runs on {' or '.join(NAMES)}. "
            "Set KERAS_BACKEND before Keras is imported."
        )
    return name


def has_tpu() -> bool:
    """Whether this machine has a TPU that JAX may use; imports nothing."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    if not importlib.util.find_spec("libtpu"):
        return False
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


@contextlib.contextmanager
def importing_tensorflow(name: str | None = "tensorflow") -> Iterator[None]:
    """Decides on the backend, and imports it quickly and quietly.

    For programs only: Keras' scikit-learn wrappers and model plots are
    unavailable in this process. The packages themselves can still be imported.

    Args:
        name: what Keras then runs on, see `choose`.
    """
    unneeded = {*_UNNEEDED} - {choose(name), *sys.modules}
    gc.disable()
    try:
        with importing():
            # Python takes a module that is None for one that is not installed.
            sys.modules.update(dict.fromkeys(unneeded))
            try:
                importlib.import_module("keras")
            finally:
                for each in unneeded:
                    sys.modules.pop(each, None)
            yield
    finally:
        # Imported modules stay, so the garbage collector can skip them.
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hides TensorFlow's messages while it is imported.

    TensorFlow announces its kernels and missing CUDA drivers before it reads
    its log level. The messages are shown if the import fails.
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


def gpu_precision(capability: tuple[int, int]) -> str:
    """Returns the default dtype policy of a GPU.

    With tensor cores, half precision: bfloat16 from compute capability 8.0,
    float16 with dynamic loss scaling from 7.0.

    Args:
        capability: (major, minor); (0, 0) if unknown.
    """
    if capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) else "float32"


def hide_devices_from_tensorflow() -> None:
    """Keeps TensorFlow on the CPU; imports it.

    TensorFlow takes all memory of a GPU with its first operation, so call this
    before.
    """
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:
            raise BackendError(
                f"TensorFlow already uses a {kind} that JAX needs. Do "
                "not use TensorFlow before training on JAX."
            ) from error


def run_on_tensorflow(
    module: str, *arguments: str, log: Callable[[str], None] = print
) -> None:
    """Runs a module of this package on TensorFlow, on the CPU.

    It runs in a child process, as Keras has one backend per process and JAX
    holds the devices of this one.

    Args:
        module: as for `python -m`.
        *arguments: its command-line arguments.
        log: called with each line of the child's output.

    Raises:
        ChildError: if it fails.
    """
    folder = str(pathlib.Path(__file__).parent.parent)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    # TensorFlow's remarks are shown only if something failed.
    with tempfile.TemporaryFile("w+", errors="replace") as remarks:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=remarks,
            text=True,
            env=environment,
        )
        try:
            for line in child.stdout:
                log(line.rstrip("\n"))
            status = child.wait()
        finally:
            child.kill()
            child.wait()
        if status:
            remarks.seek(0)
            log(remarks.read().rstrip())
            raise ChildError(
                f"This failed with exit status {status}, see its output above: "
                "KERAS_BACKEND=tensorflow "
                + shlex.join(["python", "-m", module, *arguments])
            )
