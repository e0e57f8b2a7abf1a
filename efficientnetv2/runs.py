"""A run: its folder, its data, and how far it is."""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import ml_collections
import numpy as np

import efficientnetv2
from efficientnetv2 import checkpoints, declarative, files, formatting
from efficientnetv2 import config as config_lib
from efficientnetv2.config import run_plan
from efficientnetv2.data import fingerprint, loading
from efficientnetv2.engines import optimizers
from efficientnetv2.errors import UserError

METRICS = "metrics.json"
LOCK = ".lock"


class RunError(UserError):
    """A model_dir that cannot be used, or belongs to another run."""


@dataclasses.dataclass
class State:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        history: what checkpoints know besides arrays: evaluations, times,
            'skipped' batches of data, the 'micro_batch_size', and the step
            at which the run 'stopped' early, if it did.
    """

    step: int = 0
    history: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "evaluations": [],
            "train_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "step_seconds": [0.0, 0.0],
            "best": None,
            "skipped": 0,
            "micro_batch_size": 0,
            "stopped": None,
        }
    )

    def meta(self) -> dict[str, Any]:
        """Returns what a checkpoint of this state says besides its arrays."""
        return {"step": self.step, "history": self.history}


class Splits:
    """The splits of a run's data, each loaded once.

    Attributes:
        left_out: what was left out of them.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, log: Callable[[str], None]
    ):
        self.config, self.log = config, log
        self.left_out = loading.LeftOut(log)
        self.loaded: dict[str, loading.Source] = {}

    def __getitem__(self, name: str) -> loading.Source:
        if name not in self.loaded:
            # The source of the data is logged once.
            log = (lambda _: None) if self.loaded else self.log
            self.loaded[name] = loading.load_split(
                self.config, name, log, self.left_out
            )
        return self.loaded[name]


class Run:
    """The folder, log and callbacks of a run.

    Args:
        model_dir: where the run leaves its files.
        callbacks: of Keras, called while training.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike,
        log: Callable[[str], None] = print,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ):
        self.model_dir = pathlib.Path(model_dir)
        self.log, self.callbacks = log, callbacks
        self.metrics_path = self.model_dir / METRICS

    def read_metrics(self) -> dict:
        """Returns the content of metrics.json, {} if there is none."""
        try:
            return json.loads(self.metrics_path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(
                f"{self.metrics_path} is not valid JSON ({error}). Remove it "
                "to have it written again."
            ) from None

    def update_metrics(self, **values) -> dict:
        """Merges values into metrics.json, atomically."""
        content = {**self.read_metrics(), **values}
        files.write_json(self.metrics_path, content)
        return content


def as_begun(
    run: Run, config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """Returns the configuration to resume a run of an older version with.

    It keeps the values of its time for options that its `config.yaml` does
    not know; the log says if others are asked for.
    """
    path = run.model_dir / config_lib.FILE
    if not path.exists():
        return config
    config = config.copy_and_resolve_references().unlock()
    kept = config_lib.later_options(declarative.read_yaml(path))
    for key, value in kept.items():
        section, option = key.split(".")
        asked = config[section][option]
        if asked != value:
            run.log(
                f"{path} is older than {key}: the run keeps {value!r}, not "
                f"{asked!r}."
            )
            config[section][option] = value
    return config.lock()


@contextlib.contextmanager
def claimed(run: Run, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Locks a run's model_dir against other processes.

    Creates model_dir and config.yaml, or checks that they agree.

    Raises:
        RunError: if model_dir is a file, cannot be written, is in use, or
            holds a run with another configuration; the message shows the
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
    with files.writing(folder), files.locked(folder / LOCK) as lock:
        if lock.holder:
            raise RunError(
                f"{folder} is in use by {lock.holder}. Wait until it "
                "ends, or name another --model_dir."
            )
        _write_config(run, config)
        yield


def _write_config(run: Run, config: ml_collections.ConfigDict) -> None:
    """Writes config.yaml, which must agree with one that is there."""
    folder, text = run.model_dir, config_lib.to_yaml(config)
    path = folder / config_lib.FILE
    # A run without a checkpoint may be started with other options.
    if path.exists() and _has_begun(run):
        saved = declarative.read_yaml(path)
        # Configurations of earlier versions lack newer options.
        free = fingerprint.free_options(saved, config, folder)
        free = (*config_lib.FREE_OPTIONS, *free)
        changed = config_lib.differences(saved, config.to_dict(), free, True)
        longer = changed and all(
            key == "train.epochs" and now > then for key, then, now in changed
        )
        if config.train.extend and longer:
            run.log(_describe_extension(config, saved["train"]["epochs"]))
            changed = []
        if changed:
            lines = config_lib.format_differences(changed)
            raise RunError(
                f"{folder} holds a run with another configuration:\n{lines}\n"
                "Name another --model_dir, or repeat that run with "
                f"--hparam_str={path}."
            )
    begun = bool(checkpoints.list_steps(folder))
    written = fingerprint.claim(config, folder, run.log, begun)
    for name, content in {**written, config_lib.FILE: text}.items():
        files.write_text(folder / name, content)


def _has_begun(run: Run) -> bool:
    """Whether a folder holds a checkpoint to resume from, or a result."""
    found = checkpoints.folder(run.model_dir).glob("*.npz")
    return any(found) or bool(run.read_metrics().get("finished"))


def _describe_extension(config: ml_collections.ConfigDict, epochs: float):
    """Explains what more epochs do to a run's schedules."""
    before = config.copy_and_resolve_references().unlock()
    before.train.epochs = epochs
    plan, old_plan = run_plan(config), run_plan(before)
    step = old_plan.total_steps
    old = float(optimizers.learning_rate(before, old_plan)(step))
    new = float(optimizers.learning_rate(config, plan)(step))
    return (
        f"Extended from {epochs:g} to {config.train.epochs:g} epochs. All "
        f"schedules stretch over the {plan.total_steps:,} steps: after "
        f"step {step:,} the learning rate is {new:.3g} (it was {old:.3g}) and "
        f"the stage is {plan.stage_of_steps[step] + 1} of {len(plan.stages)} "
        f"({plan.stage(step).image_size} px)."
    )


def environment() -> dict:
    """Returns versions and machine, for metrics.json."""
    import tensorflow as tf

    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    devices = [d.device_type for d in tf.config.list_physical_devices()]
    if keras.config.backend() == "jax":
        import jax

        versions["jax"] = jax.__version__
        devices = [device.platform.upper() for device in jax.devices()]
    return {
        "efficientnetv2": efficientnetv2.__version__,
        "python": platform.python_version(),
        **versions,
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "devices": devices,
        "command": formatting.command_line(),
    }
