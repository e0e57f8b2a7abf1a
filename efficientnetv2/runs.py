"""A run and its folder: configuration, files, who may use it."""

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
from efficientnetv2 import (
    checkpoints,
    declarative,
    files,
    formatting,
    progressive,
)
from efficientnetv2 import config as config_lib
from efficientnetv2.config import RunPlan, run_plan
from efficientnetv2.data import fingerprint, loading
from efficientnetv2.engines import schedules
from efficientnetv2.errors import UserError

METRICS = "metrics.json"
LOCK = ".lock"


class RunError(UserError):
    """A model_dir that cannot be used, or belongs to another run."""


@dataclasses.dataclass
class State:
    """Where a run is.

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


@dataclasses.dataclass
class Run:
    """What the parts of a run share.

    Attributes:
        config: locked configuration.
        plan: numbers of steps.
        stages: of progressive learning.
        model_dir: where the run leaves its files.
        log: prints one line.
        callbacks: of Keras, called while training.
    """

    config: ml_collections.ConfigDict
    plan: RunPlan
    stages: list[progressive.Stage]
    model_dir: pathlib.Path
    log: Callable[[str], None]
    callbacks: Sequence[keras.callbacks.Callback] = ()

    def __post_init__(self):
        self.stage_of_steps = progressive.stage_of_steps(
            self.config, self.stages
        )
        self.left_out = loading.LeftOut(self.log)
        self._splits = {}

    def split(self, name: str) -> loading.Source:
        """Returns a split of the data, which is loaded once."""
        if name not in self._splits:
            # Where the data came from is said once.
            log = (lambda _: None) if self._splits else self.log
            self._splits[name] = loading.load_split(
                self.config, name, log, self.left_out
            )
        return self._splits[name]

    def stage(self, step: int) -> progressive.Stage:
        """Returns the stage of a step."""
        return self.stages[self.stage_of_steps[step]]

    def describe_step(self, step: int) -> str:
        """Returns a step as errors name it."""
        rate = schedules.learning_rate(self.config, self.plan)(step)
        return (
            f"step {step:,} (stage {self.stage_of_steps[step] + 1} of "
            f"{len(self.stages)}, learning rate {float(rate):.3g})"
        )

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after so many steps."""
        options = self.config.eval
        every = max(1, round(options.every_epochs * self.plan.steps_per_epoch))
        return options.val_split is not None and (
            step % every == 0 or step == self.plan.total_steps
        )

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        every = self.config.checkpoint.every_steps
        return (
            step == self.plan.total_steps
            or step % self.plan.steps_per_epoch == 0
            or bool(every and step % every == 0)
            or self.config.train.stage_order == "ascending"
            and any(step == stage.last_step for stage in self.stages)
        )

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
        files.write_json(self.metrics_path, content)
        return content


def make_run(
    config: ml_collections.ConfigDict,
    model_dir: str | os.PathLike,
    log: Callable[[str], None] = print,
) -> Run:
    """Returns a run; writes no file."""
    config = config_lib.as_begun(config, model_dir, log)
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
    with files.writing(folder), files.locked(folder / LOCK) as lock:
        if lock.holder:
            raise RunError(
                f"{folder} is in use by {lock.holder}. Wait for its end, "
                "or name another --model_dir."
            )
        _check_config(run)
        yield


def _check_config(run: Run) -> None:
    """Writes config.yaml, which must agree with one that is there."""
    folder = run.model_dir
    path = folder / config_lib.FILE
    # A start that failed before the first checkpoint binds nobody.
    if path.exists() and _has_begun(run):
        saved = declarative.read_yaml(path)
        # What an earlier version wrote lacks the options that came later.
        changed = config_lib.differences(
            saved,
            run.config.to_dict(),
            (
                *config_lib.FREE_OPTIONS,
                *fingerprint.free_options(saved, run.config, folder),
            ),
            only_common=True,
        )
        if run.config.train.extend and _is_longer(changed):
            run.log(_describe_extension(run, saved["train"]["epochs"]))
            changed = []
        if changed:
            lines = config_lib.format_differences(changed)
            raise RunError(
                f"{folder} holds a run of another configuration:\n{lines}\n"
                "Name another --model_dir, or repeat that run with "
                f"--hparam_str={path}."
            )
    begun = bool(checkpoints.list_steps(folder))
    written = fingerprint.claim(run.config, folder, run.log, begun)
    written[config_lib.FILE] = config_lib.to_yaml(run.config)
    for name, text in written.items():
        files.write_text(folder / name, text)


def _has_begun(run: Run) -> bool:
    """Whether a folder holds a checkpoint to go on with, or a result."""
    found = checkpoints.folder(run.model_dir).glob("*.npz")
    return any(found) or bool(run.read_metrics().get("finished"))


def _is_longer(changed) -> bool:
    """Whether nothing differs but `train.epochs`, which is larger now."""
    keys = [key for key, _, _ in changed]
    return keys == ["train.epochs"] and changed[0][2] > changed[0][1]


def _describe_extension(run: Run, epochs: float) -> str:
    """Returns what becomes of the schedules of a run with more epochs."""
    before = run.config.copy_and_resolve_references().unlock()
    before.train.epochs = epochs
    plan = run_plan(before)
    step = plan.total_steps
    old = float(schedules.learning_rate(before, plan)(step))
    new = float(schedules.learning_rate(run.config, run.plan)(step))
    stage = run.stage(step)
    return (
        f"Extended from {epochs:g} to {run.config.train.epochs:g} epochs. All "
        f"schedules stretch over the {run.plan.total_steps:,} steps: after "
        f"step {step:,} the learning rate is {new:.3g} (it was {old:.3g}) and "
        f"the stage is {run.stage_of_steps[step] + 1} of {len(run.stages)} "
        f"({stage.image_size} px)."
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
