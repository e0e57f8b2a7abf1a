"""Training, top to bottom: data, engine, state, steps, evaluation, checkpoints.

What happens when something goes wrong is in `recovery`; what a step does on
each backend is in `engines`.
"""

import functools
import time

import ml_collections

from efficientnetv2 import (
    checkpoints,
    engines,
    evaluation,
    notices,
    progressive,
    recovery,
    zoo,
)
from efficientnetv2.config import run_plan
from efficientnetv2.data import faults, pipeline, sources
from efficientnetv2.engines import optimizers
from efficientnetv2.progress import Clock, Events, Progress
from efficientnetv2.recovery import Interrupted, Recovery, UserCallbacks
from efficientnetv2.runs import Run, Splits, State

_CURVES = ("top1", "top5", "cross_entropy")


def train_run(config: ml_collections.ConfigDict, data: Splits, run: Run):
    """Trains, or resumes an interrupted run, up to the last step.

    Leaves checkpoints, TensorBoard scalars and the curve in metrics.json.

    Args:
        config: locked.
        data: of the configuration.
        run: where the files go.

    Returns:
        The engine, with the weights of the last step.

    Raises:
        UserError: for data that cannot be obtained, a model_dir that cannot be
            written, or a loss that is not finite.
    """
    splits = [data[config.train.split]]
    if config.eval.val_split:
        splits.append(data[config.eval.val_split])
    plan, train = run_plan(config), config.train
    named = recovery.load_callbacks(train.callbacks)
    run.callbacks = [*run.callbacks, *named]
    with faults.explained(*splits):
        engine = Recovery(train.on_nan, train.batch_size, run.log).until_done(
            lambda attempt: _attempt(config, plan, run, attempt, *splits)
        )
    data.left_out.report()
    return engine


def _attempt(config, plan, run, attempt, source, validation_source=None):
    """Trains from the latest checkpoint to the end, or to a failure."""
    engine = attempt.engine = engines.create(config, plan)
    state = attempt.state = _resume(config, plan, run, engine)
    attempt.amend(state)
    engine.micro_batch_size = state.history["micro_batch_size"]
    engine.class_weights = sources.class_weights(
        config.train.class_weights, source
    )
    if state.step >= plan.total_steps or state.history["stopped"]:
        return engine
    notices.announce(config, plan, engine, run.log)

    make_dataset = functools.partial(
        pipeline.training_dataset,
        source,
        config,
        plan,
        first_step=state.step,
        skipped=state.history["skipped"],
        on_device=engine.augments,
    )
    validation = None
    if validation_source is not None and engine.is_chief:
        validation = pipeline.evaluation_dataset(validation_source, config)
    # Metrics are read from the device every so many steps.
    every = 1 if run.callbacks else max(1, plan.steps_per_epoch // 50)
    batches = iter(engine.dataset(make_dataset))
    users = UserCallbacks(run.callbacks, engine, plan, state.step)
    with (
        recovery.signals() as stop,
        Events(run.model_dir / "tensorboard", engine.is_chief) as events,
        Progress(config, plan, state.step, engine.is_chief) as progress,
        Clock(state.history) as clock,
    ):
        saved_at = time.monotonic()
        while state.step < plan.total_steps and not state.history["stopped"]:
            stage = progress.enter(state.step)
            users.before(state.step)
            clock.wait()
            batch = next(batches)
            clock.compute()
            progress.add(engine.step(batch, stage.dropout_rate))
            state.step += 1
            evaluates = validation is not None and plan.evaluates(state.step)
            minutes = (time.monotonic() - saved_at) / 60.0
            saves = (
                plan.saves(state.step)
                or stop.signal is not None
                or minutes >= config.checkpoint.every_minutes
            )
            if state.step % every == 0 or evaluates or saves:
                progress.read()
                recovery.check_finite(engine, config, plan)
            if state.step % every == 0:
                values = _scalars(config, plan, state, progress, clock)
                events.write(state.step, values)
            clock.stop()
            if evaluates:
                result = _evaluate(
                    config, plan, run, engine, validation, state, clock
                )
                progress.evaluated(result, state.history["best"] is result)
                events.write(
                    state.step,
                    {f"validation/{name}": result[name] for name in _CURVES},
                )
            users.after(state, progress.latest)
            if users.stopped or _out_of_patience(config, state):
                state.history["stopped"] = state.step
            if (saves or state.history["stopped"]) and engine.is_chief:
                clock.record()
                checkpoints.save(
                    run.model_dir,
                    engine.arrays(),
                    state.meta(),
                    config.checkpoint.keep,
                )
                saved_at = time.monotonic()
            if stop.signal:
                raise Interrupted(
                    f"{stop.signal} at step {state.step}: a checkpoint was "
                    "written. Rerun the same command to resume."
                )
    users.end()
    if engine.is_chief:
        run.update_metrics(**state.history, steps=state.step)
        run.log(
            f"Trained for {state.history['train_seconds'] / 60:.1f} minutes; "
            f"steps spent {state.history['waiting_share']:.1%} of their time "
            "waiting for data."
        )
    return engine


def _resume(config, plan, run, engine) -> State:
    """Restores the latest checkpoint, or sets the weights to start from."""
    state = State()
    state.history["micro_batch_size"] = config.train.micro_batch_size
    latest = checkpoints.load_latest(run.model_dir, run.log)
    if latest is not None:
        engine.restore(latest.arrays, latest.path)
        state.step = latest.meta["step"]
        state.history |= latest.meta["history"]
        if config.train.extend:
            state.history["stopped"] = None
        run.log(f"Resuming at step {state.step:,} of {plan.total_steps:,}.")
    elif config.train.ft_init_ckpt:
        run.log(zoo.initialize(engine.network, config))
        engine.reset_average()
    return state


def _evaluate(config, plan, run, engine, dataset, state, clock) -> dict:
    """Evaluates the averaged weights and keeps them if they are the best."""
    history, start = state.history, time.monotonic()
    result = evaluation.evaluate(engine.logits, dataset, config.train.loss_type)
    history["evaluation_seconds"] += time.monotonic() - start
    clock.record()
    result |= {
        "step": state.step,
        "epoch": state.step / plan.steps_per_epoch,
        "train_seconds": history["train_seconds"],
        "evaluation_seconds": history["evaluation_seconds"],
    }
    history["evaluations"].append(result)
    best = history["best"]
    if best is None or result["top1"] >= best["top1"]:
        history["best"] = result
        checkpoints.save_best(run.model_dir, engine.arrays(), state.meta())
    run.update_metrics(**history)
    return result


def _out_of_patience(config, state: State) -> bool:
    """Whether the last `eval.patience` evaluations brought no improvement."""
    best, since_best = -1.0, 0
    for each in state.history["evaluations"]:
        since_best = 0 if each["top1"] > best else since_best + 1
        best = max(best, each["top1"])
    return 0 < config.eval.patience <= since_best


def _scalars(config, plan, state, progress, clock) -> dict:
    """Returns TensorBoard's scalars: means since the last call."""
    step = state.step - 1
    stage = plan.stage(step)
    values = {
        **progress.take_means(),
        "learning_rate": float(optimizers.learning_rate(config, plan)(step)),
        "weight_decay": float(progressive.weight_decay(config, plan, step)),
        "image_size": stage.image_size,
        "dropout_rate": stage.dropout_rate,
        "images_per_second": progress.images_per_second(),
        "waiting_share": clock.take_waiting_share(),
    }
    return {f"train/{name}": value for name, value in values.items()}
