"""A run from configuration to results: train, evaluate, export."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import efficientnetv2
from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative, tables, zoo
from efficientnetv2.config import RunPlan, run_plan
from efficientnetv2.data import faults, pipeline, registry
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture, counting, weights
from efficientnetv2.training import (
    callbacks,
    checkpoints,
    evaluation,
    optimizers,
    progressive,
    schedules,
)
from efficientnetv2.training.trainer import Trainer, waiting_share

METRICS = "metrics.json"
CONFIG = "config.yaml"
CLASS_NAMES = "class_names.txt"


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
    """

    config: ml_collections.ConfigDict
    plan: RunPlan
    stages: list[progressive.Stage]
    model_dir: pathlib.Path
    log: Callable[[str], None]

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


def claim_model_dir(run: Run) -> None:
    """Makes model_dir and writes config.yaml, or checks that it agrees.

    Raises:
        RunError: if model_dir is a file, cannot be written, or holds a run of
            another configuration; the message shows the differences.
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
    path = folder / CONFIG
    if path.exists():
        changed = [
            difference
            for difference in config_lib.differences(
                declarative.read_yaml(path), run.config.to_dict()
            )
            if not difference[0].startswith(config_lib.FREE_OPTIONS)
        ]
        if changed:
            lines = "\n".join(
                f"  {key}: {old!r} there, {new!r} now"
                for key, old, new in changed
            )
            raise RunError(
                f"{folder} holds a run of another configuration:\n{lines}\n"
                "Name another --model_dir, or repeat that run with "
                f"--hparam_str={path}."
            )
    names = registry.load_info(run.config.data.ds_name).class_names
    for name, text in (
        (CLASS_NAMES, "".join(f"{name}\n" for name in names)),
        (CONFIG, config_lib.to_yaml(run.config)),
    ):
        checkpoints.write_text(folder / name, text)


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
    """Returns `runtime.jit_compile`, by default on for GPU and TPU only."""
    if config.runtime.jit_compile is not None:
        return config.runtime.jit_compile
    return bool(
        tf.config.list_physical_devices("GPU")
        or tf.config.list_physical_devices("TPU")
    )


def _evaluator(network, config):
    return evaluation.make_evaluator(
        network,
        config.train.batch_parts,
        uses_xla(config),
        config.train.loss_type,
    )


def build_trainer(run: Run) -> Trainer:
    """Builds network, moving average and optimizer."""
    config = run.config
    set_up_runtime(config)
    model_config = config.model.to_dict()
    network = architecture.build(model_config)
    ema_network = network
    if config.train.ft_init_ckpt:
        _initialize(network, config, run.log)
    if config.train.ema_decay:
        ema_network = architecture.build(model_config, name="ema")
        ema_network.set_weights(network.get_weights())
    mix = None
    if config.data.mix_on_device:
        mix = pipeline.mixer(config, run.stages)
    trainer = Trainer(network, ema_network, config, run.plan, mix)
    optimizer = optimizers.build_optimizer(
        config, schedules.learning_rate(config, run.plan)
    )
    trainer.compile(optimizer=optimizer, jit_compile=uses_xla(config))
    optimizer.build(trainer.trained)
    return trainer


def _initialize(network, config, log) -> None:
    """Loads the weights that fine-tuning starts from.

    A classifier of as many classes is loaded too, but not that of a run on
    classes of other names.
    """
    classifier = network.get_layer("logits")
    fresh = classifier.get_weights()
    path = zoo.resolve_source(network, config.train.ft_init_ckpt)
    text = str(weights.load(network, path, skip_classifier=True))
    names = registry.load_info(config.data.ds_name).class_names
    if _class_names_of_run(path) not in (None, names):
        classifier.set_weights(fresh)
        text += " Its classes have other names: the classifier starts anew."
    log(text)


def _class_names_of_run(checkpoint: pathlib.Path) -> list[str] | None:
    """Returns the names of the classes of a run, None if it left none."""
    path = checkpoint.parent.parent / CLASS_NAMES
    if not path.is_file():
        return None
    return path.read_text().split("\n")[:-1]


def _chunks(first: int, last: int, epoch: int) -> list[tuple[int, int]]:
    """Splits steps into calls of fit: a partial epoch, whole ones, the rest.

    `fit` counts epochs of equal length, while a run may resume within one and
    may end within one.
    """
    cuts = {first, last}
    cuts.update(
        cut
        for cut in (-(-first // epoch) * epoch, last // epoch * epoch)
        if first < cut < last
    )
    ordered = sorted(cuts)
    return list(itertools.pairwise(ordered))


def describe_model(run: Run, trainer: Trainer) -> str:
    """Returns a line with the model's parameters and multiply-adds."""
    network = trainer.network
    trained = sum(math.prod(variable.shape) for variable in trainer.trained)
    sizes = sorted({stage.image_size for stage in run.stages})
    cost = ", ".join(
        f"{counting.format_count(_multiply_adds(run, size))} at {size} px"
        for size in sizes
    )
    return (
        f"{network.name}: {network.count_params():,} parameters, {trained:,} "
        f"trained, {run.config.model.num_classes} classes; multiply-adds an "
        f"image: {cost}"
    )


def _multiply_adds(run: Run, image_size: int) -> int:
    rows = counting.count_stages(run.config.model.to_dict(), image_size)
    return counting.total(rows).multiply_adds


def train(run: Run) -> Trainer:
    """Trains, or goes on with an interrupted run, up to the last step.

    Leaves checkpoints, TensorBoard scalars and the curve in metrics.json.

    Returns:
        The trainer, with the weights of the last step.

    Raises:
        UserError: for data that cannot be had, a model_dir that cannot be
            written, or a loss that is not finite.
    """
    config, plan = run.config, run.plan
    left_out = faults.LeftOut(run.log)
    train_source = faults.load_split(
        config, config.train.split, left_out, run.log
    )
    validation_source = None
    if config.eval.val_split:
        validation_source = faults.load_split(
            config, config.eval.val_split, left_out
        )
    trainer = build_trainer(run)
    run.log(describe_model(run, trainer))
    latest = checkpoints.load_latest(run.model_dir, run.log)
    history = {
        "evaluations": [],
        "train_seconds": 0.0,
        "evaluation_seconds": 0.0,
        "step_seconds": [0.0, 0.0],
        "best": None,
    }
    first_step = 0
    if latest is not None:
        trainer.restore(latest.arrays, latest.path)
        first_step = latest.meta["step"]
        history |= latest.meta["history"]
        trainer.seconds.assign(history["step_seconds"])
        run.log(f"Resuming at step {first_step:,} of {plan.total_steps:,}.")
    run.log(tables.align(stage_table(run)))
    if first_step < plan.total_steps:
        read_from = filter(None, (train_source, validation_source))
        with faults.named(*read_from):
            _fit(
                run,
                trainer,
                train_source,
                validation_source,
                history,
                first_step,
            )
        left_out.report()
    return trainer


def stage_table(run: Run) -> list[tuple[str, ...]]:
    """Returns the stages of a run, see `progressive.table`."""
    return progressive.table(
        run.stages,
        run.plan.steps_per_epoch,
        run.config.data.augname,
        lambda step: schedules.weight_decay(run.config, run.plan, step),
        run.config.train.stage_order,
    )


def _fit(run, trainer, train_source, validation_source, history, first_step):
    config, plan, stages = run.config, run.plan, run.stages
    validation = None
    if validation_source is not None:
        validation = pipeline.evaluation_dataset(validation_source, config)
    stage_of_steps = progressive.stage_of_steps(config, stages)
    drawn = config.train.stage_order == "random"
    progress = callbacks.Progress(
        stages, stage_of_steps, plan.steps_per_epoch, first_step, drawn
    )
    log = progress.log
    stage_setter = callbacks.Stages(
        stages, stage_of_steps, log, first_step, drawn
    )
    stage_setter.attach(trainer.network)
    writer = tf.summary.create_file_writer(str(run.model_dir / "tensorboard"))
    learning_rate = schedules.learning_rate(config, plan)
    evaluate = _evaluator(trainer.ema_network, config)
    clock = {"start": time.monotonic(), "before": history["train_seconds"]}

    def seconds():
        return clock["before"] + time.monotonic() - clock["start"]

    def meta(step):
        history["train_seconds"] = seconds()
        # Waiting for batches, and computing.
        history["step_seconds"] = trainer.seconds.numpy().tolist()
        history["waiting_share"] = waiting_share(history["step_seconds"])
        return {"step": step, "history": history}

    def save(step):
        checkpoints.save(
            run.model_dir,
            trainer.state_arrays(),
            meta(step),
            config.checkpoint.keep,
        )

    def validate(step):
        start = time.monotonic()
        result = evaluate(validation)
        history["evaluation_seconds"] += time.monotonic() - start
        result |= {"step": step, "epoch": step / plan.steps_per_epoch}
        result["train_seconds"] = seconds()
        result["evaluation_seconds"] = history["evaluation_seconds"]
        history["evaluations"].append(result)
        best = history["best"]
        is_best = best is None or result["top1"] >= best["top1"]
        log(
            f"epoch {result['epoch']:.4g}: {config.eval.val_split} top-1 "
            f"{result['top1']:.2%} top-5 {result['top5']:.2%} "
            f"({result['images']:,} images)" + (", the best" * is_best)
        )
        with writer.as_default(step=step):
            for name in ("top1", "top5", "cross_entropy"):
                tf.summary.scalar(f"validation/{name}", result[name])
        if is_best:
            history["best"] = result
        run.update_metrics(**meta(step)["history"])
        if is_best:
            checkpoints.save_best(
                run.model_dir, trainer.state_arrays(), meta(step)
            )
        progress.restart_clock()

    epoch = plan.steps_per_epoch
    validation_steps = max(1, round(config.eval.every_epochs * epoch))
    stage_ends = set() if drawn else {stage.last_step for stage in stages}

    def at_steps(step):
        due = []
        done = step == plan.total_steps
        if validation is not None and (step % validation_steps == 0 or done):
            due.append("validate")
        every = config.checkpoint.every_steps
        if (
            done
            or step in stage_ends
            or step % epoch == 0
            or (every and step % every == 0)
        ):
            due.append("save")
        return due

    since = {"seconds": trainer.seconds.numpy()}

    def recent_waiting_share():
        before, since["seconds"] = since["seconds"], trainer.seconds.numpy()
        return waiting_share(since["seconds"] - before)

    def scalars(step):
        stage = stages[stage_of_steps[step - 1]]
        return {
            "learning_rate": float(learning_rate(step - 1)),
            "weight_decay": float(
                schedules.weight_decay(config, plan, step - 1)
            ),
            "image_size": stage.image_size,
            "dropout_rate": stage.dropout_rate,
            "images_per_second": progress.images_per_second(),
            "waiting_share": recent_waiting_share(),
        }

    def describe(step):
        stage = stage_of_steps[step]
        return (
            f"step {step:,} (stage {stage + 1} of {len(stages)}, learning "
            f"rate {float(learning_rate(step)):.3g})"
        )

    periodic = callbacks.Periodic(
        at_steps,
        {"validate": validate, "save": save},
        60.0 * config.checkpoint.every_minutes,
        save,
        first_step,
    )
    calls = [
        stage_setter,
        callbacks.StopOnNonFinite(describe, first_step),
        progress,
        callbacks.Scalars(writer, scalars, max(1, epoch // 50), first_step),
        periodic,
    ]
    try:
        for first, last in _chunks(first_step, plan.total_steps, epoch):
            length = min(epoch, last - first)
            trainer.fit(
                pipeline.training_dataset(
                    train_source, config, plan, stages, first
                ),
                initial_epoch=first // epoch,
                epochs=first // epoch + -(-(last - first) // length),
                steps_per_epoch=length,
                callbacks=calls,
                shuffle=False,  # the pipeline's part
                verbose=0,
            )
    finally:
        periodic.restore_handlers()
        writer.flush()
    run.update_metrics(
        **meta(plan.total_steps)["history"], steps=plan.total_steps
    )
    log(
        f"Trained for {history['train_seconds'] / 60:.1f} minutes; the steps "
        f"waited for data {history['waiting_share']:.1%} of their time."
    )


def load_averaged(
    network: keras.Model, checkpoint: checkpoints.Checkpoint
) -> None:
    """Sets the averaged weights of a checkpoint, else the raw ones."""
    source = weights.from_arrays(checkpoint.arrays, str(checkpoint.path))
    weights.assign(network, source)


def evaluate_checkpoint(
    run: Run, name: str | None, observe: Callable | None = None
) -> dict:
    """Evaluates the averaged weights of a checkpoint on `eval.split`.

    Args:
        run: of the checkpoint.
        name: see `checkpoints.find`.
        observe: called with each batch, see `evaluation.make_evaluator`.

    Returns:
        The metrics of `evaluation.make_evaluator`, with 'checkpoint', 'step'
        and 'split'.
    """
    config = run.config
    checkpoint = checkpoints.load(checkpoints.find(run.model_dir, name))
    left_out = faults.LeftOut(run.log)
    source = faults.load_split(config, config.eval.split, left_out, run.log)
    set_up_runtime(config)
    network = architecture.build(config.model.to_dict())
    load_averaged(network, checkpoint)
    evaluate = _evaluator(network, config)
    with faults.named(source):
        result = evaluate(pipeline.evaluation_dataset(source, config), observe)
    left_out.report()
    result |= {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.meta["step"],
        "split": config.eval.split,
    }
    run.log(
        f"{config.eval.split}: top-1 {result['top1']:.2%} top-5 "
        f"{result['top5']:.2%} ({result['images']:,} images, "
        f"{checkpoint.path.name}, step {result['step']:,})"
    )
    return result


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
        "command": " ".join(sys.argv),
    }
