"""A run and its folder: configuration, files, who may use it."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Sequence

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import efficientnetv2
from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative, formatting, locks
from efficientnetv2.config import RunPlan, run_plan
from efficientnetv2.data import class_list, registry
from efficientnetv2.errors import UserError
from efficientnetv2.training import checkpoints, distribution, progressive

METRICS = "metrics.json"
LOCK = ".lock"
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class RunError(UserError):
    """A model_dir that cannot be used, or belongs to another run."""


@dataclasses.dataclass
class Run:
    """What the parts of a run share.

    Attributes:
        config: locked configuration.
        plan: numbers of steps.
        stages: of progressive learning.
        model_dir: where the run leaves its files.
        log: prints one line.
        is_chief: whether this process writes the run's files; of several
            machines one does.
        callbacks: of Keras, called besides the run's own.
    """

    config: ml_collections.ConfigDict
    plan: RunPlan
    stages: list[progressive.Stage]
    model_dir: pathlib.Path
    log: Callable[[str], None]
    is_chief: bool = True
    callbacks: Sequence[keras.callbacks.Callback] = ()

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """The devices and machines of the run."""
        return distribution.make_strategy(self.config.runtime.strategy)

    @property
    def metrics_path(self) -> pathlib.Path:
        return self.model_dir / METRICS

    def read_metrics(self) -> dict:
        """Returns the content of metrics.json, {} if there is none."""
        try:
            return json.loads(self.metrics_path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(
                f"{self.metrics_path} is not valid JSON ({error}). Remove it "
                "to have it written anew."
            ) from None

    def update_metrics(self, **values) -> dict:
        """Merges values into metrics.json, atomically."""
        content = {**self.read_metrics(), **values}
        checkpoints.write_json(self.metrics_path, content)
        return content


def make_run(
    config: ml_collections.ConfigDict,
    model_dir: str | os.PathLike,
    log: Callable[[str], None] = print,
) -> Run:
    """Returns a run; touches no file."""
    plan = run_plan(config)
    stages = progressive.build_stages(config, plan)
    return Run(config, plan, stages, pathlib.Path(model_dir), log)


@contextlib.contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Holds a run's model_dir, which no other process then gets.

    Makes model_dir and writes config.yaml, or checks that it agrees.

    Raises:
        RunError: if model_dir is a file, cannot be written, is in use, or
            holds a run of another configuration; the message shows the
            differences.
        CheckpointError: if the disk is full, also for what is written while
            the context is open.
    """
    folder = run.model_dir
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--model_dir={folder} is a file, not a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Cannot make --model_dir={folder}: {error.strerror}."
        ) from None
    if not os.access(folder, os.W_OK):
        raise RunError(f"--model_dir={folder} is not writable.")
    with writing(folder), locks.locked(folder / LOCK) as lock:
        if lock.holder:
            raise RunError(
                f"{folder} is in use by {lock.holder}. Wait for its end, "
                "or name another --model_dir."
            )
        _check_config(run)
        yield


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Tells what it means that a disk is full, or can only be read.

    Args:
        folder: that is written.

    Raises:
        CheckpointError: instead of the error of the system, or of TensorFlow.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        # A write to an open file does not say which.
        path = error.filename or folder
        raise checkpoints.cannot_write(path, error.strerror) from error
    except tf.errors.OpError as error:
        for reason in map(os.strerror, _UNWRITABLE):
            if reason in error.message:
                raise checkpoints.cannot_write(folder, reason) from error
        raise


def _check_config(run: Run) -> None:
    """Writes config.yaml, which must agree with one that is there."""
    folder = run.model_dir
    path = folder / config_lib.FILE
    if path.exists():
        changed = config_lib.differences(
            declarative.read_yaml(path),
            run.config.to_dict(),
            config_lib.FREE_OPTIONS,
        )
        if changed:
            lines = config_lib.format_differences(changed)
            raise RunError(
                f"{folder} holds a run of another configuration:\n{lines}\n"
                "Name another --model_dir, or repeat that run with "
                f"--hparam_str={path}."
            )
    names = registry.load_info(run.config.data.ds_name).class_names
    for name, text in (
        (class_list.FILE, class_list.to_text(names)),
        (config_lib.FILE, config_lib.to_yaml(run.config)),
    ):
        checkpoints.write_text(folder / name, text)


def read_class_names(model_dir: pathlib.Path) -> list[str] | None:
    """Returns the names of the classes of a run, None if it left none."""
    path = model_dir / class_list.FILE
    return class_list.read(path) if path.is_file() else None


def set_up_runtime(config: ml_collections.ConfigDict) -> None:
    """Sets precision, threads and seeds, before anything is built."""
    parts, threads = config.train.batch_parts, config.runtime.threads
    # Parts share the cores best when each operation keeps to one of them.
    within = threads if parts == 1 else 1
    try:
        tf.config.threading.set_intra_op_parallelism_threads(within)
        tf.config.threading.set_inter_op_parallelism_threads(
            threads if parts == 1 else threads or parts
        )
    except RuntimeError:
        # A second run in one process keeps the threads of the first.
        pass
    keras.mixed_precision.set_dtype_policy(
        config.runtime.mixed_precision or "float32"
    )
    keras.utils.set_random_seed(config.train.seed)


def uses_xla(config: ml_collections.ConfigDict) -> bool:
    """Returns `runtime.jit_compile`, by default on for one GPU and for TPU."""
    if config.runtime.jit_compile is not None:
        return config.runtime.jit_compile
    if tf.config.list_logical_devices("TPU"):
        return True
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return replicas == 1 and bool(tf.config.list_logical_devices("GPU"))


def environment() -> dict:
    """Returns versions and machine, for metrics.json."""
    return {
        "efficientnetv2": efficientnetv2.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "devices": [d.device_type for d in tf.config.list_physical_devices()],
        "command": formatting.command_line(),
    }
