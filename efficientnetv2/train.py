"""Training, top to bottom: data, engine, state, steps, evaluation, checkpoints.

What happens when something goes wrong is in `recovery`; what a step does on
each backend is in `engines`.
"""

import math
import time

from efficientnetv2 import (
    checkpoints,
    engines,
    evaluation,
    progressive,
    recovery,
    zoo,
)
from efficientnetv2.data import faults, pipeline, sources
from efficientnetv2.engines import schedules
from efficientnetv2.models import counting
from efficientnetv2.progress import Clock, Events, Progress
from efficientnetv2.recovery import Interrupted, NotFiniteError, Recovery
from efficientnetv2.runs import Run, State
from efficientnetv2.user_callbacks import UserCallbacks

_CURVES = ("top1", "top5", "cross_entropy")


def train(run: Run):
    """Trains, or resumes an interrupted run, up to the last step.

    Leaves checkpoints, TensorBoard scalars and the curve in metrics.json.

    Returns:
        The engine, with the weights of the last step.

    Raises:
        UserError: for data that cannot be obtained, a model_dir that cannot be
            written, or a loss that is not finite.
    """
    splits = [run.split(run.config.train.split)]
    if run.config.eval.val_split:
        splits.append(run.split(run.config.eval.val_split))
    with faults.named(*splits):
        engine = Recovery(run).until_done(lambda r: _attempt(run, r, *splits))
    run.left_out.report()
    return engine


def _attempt(run: Run, attempt: Recovery, source, validation_source=None):
    """Trains from the latest checkpoint to the end, or to a failure."""
    config, plan = run.config, run.plan
    engine = attempt.engine = engines.create(config, plan, run.log)
    state = attempt.state = _resume(run, engine)
    attempt.amend(state)
    engine.micro_batch_size = state.history["micro_batch_size"]
    engine.class_weights = sources.class_weights(
        config.train.class_weights, source
    )
    if state.step >= plan.total_steps or state.history["stopped"]:
        return engine
    announce(run, engine)

    def make_dataset(worker: int, workers: int):
        skipped, part = state.history["skipped"], (worker, workers)
        return pipeline.training_dataset(
            source,
            config,
            plan,
            run.stages,
            state.step,
            skipped,
            part,
            engine.augments,
        )

    validation = None
    if validation_source is not None and engine.is_chief:
        validation = pipeline.evaluation_dataset(validation_source, config)
    # Metrics are read from the device so many steps apart.
    every = 1 if run.callbacks else max(1, plan.steps_per_epoch // 50)
    batches = iter(engine.dataset(make_dataset))
    users = UserCallbacks(run.callbacks, engine, plan, state.step)
    with (
        recovery.signals() as stop,
        Events(run.model_dir / "tensorboard", engine.is_chief) as events,
        Progress(
            config, run.stages, run.stage_of_steps, state.step, engine.is_chief
        ) as progress,
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
            evaluates = validation is not None and run.evaluates(state.step)
            minutes = (time.monotonic() - saved_at) / 60.0
            saves = (
                run.saves(state.step)
                or stop.signal is not None
                or minutes >= config.checkpoint.every_minutes
            )
            if state.step % every == 0 or evaluates or saves:
                progress.read()
                _check_finite(run, engine)
            if state.step % every == 0:
                events.write(state.step, _scalars(run, state, progress, clock))
            clock.stop()
            if evaluates:
                result = _evaluate(run, engine, validation, state, clock)
                progress.evaluated(result, state.history["best"] is result)
                events.write(
                    state.step,
                    {f"validation/{name}": result[name] for name in _CURVES},
                )
            users.after(state, progress.latest)
            if users.stopped or _out_of_patience(run, state):
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


def _resume(run: Run, engine) -> State:
    """Restores the latest checkpoint, or sets the weights to start from."""
    state = State()
    state.history["micro_batch_size"] = run.config.train.micro_batch_size
    latest = checkpoints.load_latest(run.model_dir, run.log)
    if latest is not None:
        engine.restore(latest.arrays, latest.path)
        state.step = latest.meta["step"]
        state.history |= latest.meta["history"]
        if run.config.train.extend:
            state.history["stopped"] = None
        run.log(f"Resuming at step {state.step:,} of {run.plan.total_steps:,}.")
    elif run.config.train.ft_init_ckpt:
        run.log(zoo.initialize(engine.network, run.config))
        engine.reset_average()
    return state


def announce(run: Run, engine) -> None:
    """Logs the device, the model and the stage table."""
    network, trained = engine.network, engine.trained
    sizes = sorted({stage.image_size for stage in run.stages})
    costs = (
        counting.total(counting.count_stages(run.config.model.to_dict(), size))
        for size in sizes
    )
    cost = ", ".join(
        f"{counting.format_count(each.multiply_adds)} at {size} px"
        for size, each in zip(sizes, costs, strict=True)
    )
    run.log(engine.device)
    run.log(
        f"{network.name}: {network.count_params():,} parameters, "
        f"{sum(math.prod(variable.shape) for variable in trained):,} trained, "
        f"{run.config.model.num_classes} classes; multiply-adds per image: "
        f"{cost}"
    )
    run.log(progressive.describe(run.config, run.plan, run.stages))


def _check_finite(run: Run, engine) -> None:
    step = engine.first_bad_step()
    if step is not None:
        raise NotFiniteError(
            f"The loss is not finite at {run.describe_step(step)}. The last "
            "checkpoint is from before. Lower train.lr_base, set train.gclip, "
            "or lengthen train.lr_warmup_epoch; train.on_nan=rollback goes "
            "back and leaves that data out.",
            step,
        )


def _evaluate(run: Run, engine, dataset, state: State, clock: Clock) -> dict:
    """Evaluates the averaged weights and keeps them if they are the best."""
    history, start = state.history, time.monotonic()
    result = evaluation.evaluate(
        engine.logits, dataset, run.config.train.loss_type
    )
    history["evaluation_seconds"] += time.monotonic() - start
    clock.record()
    result |= {
        "step": state.step,
        "epoch": state.step / run.plan.steps_per_epoch,
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


def _out_of_patience(run: Run, state: State) -> bool:
    """Whether `eval.patience` evaluations in a row brought nothing better."""
    best, since_best = -1.0, 0
    for each in state.history["evaluations"]:
        since_best = 0 if each["top1"] > best else since_best + 1
        best = max(best, each["top1"])
    return 0 < run.config.eval.patience <= since_best


def _scalars(run: Run, state: State, progress: Progress, clock: Clock) -> dict:
    """Returns what TensorBoard shows: means since it was asked last."""
    step = state.step - 1
    stage = run.stage(step)
    values = {
        **progress.take_means(),
        "learning_rate": float(
            schedules.learning_rate(run.config, run.plan)(step)
        ),
        "weight_decay": float(
            progressive.weight_decay(run.config, run.plan, step)
        ),
        "image_size": stage.image_size,
        "dropout_rate": stage.dropout_rate,
        "images_per_second": progress.images_per_second(),
        "waiting_share": clock.take_waiting_share(),
    }
    return {f"train/{name}": value for name, value in values.items()}
