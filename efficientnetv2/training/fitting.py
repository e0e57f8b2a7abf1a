"""Fitting: from the latest checkpoint to the last step, whatever happens."""

import contextlib
import gc
import itertools
import os
import time
from collections.abc import Callable

import keras
import ml_collections
import tensorflow as tf

from efficientnetv2.data import pipeline
from efficientnetv2.data.sources import Source
from efficientnetv2.errors import UserError
from efficientnetv2.training import (
    callbacks,
    checkpoints,
    distribution,
    evaluation,
    progressive,
    runs,
    schedules,
)
from efficientnetv2.training.trainer import Trainer, waiting_share

# A run that goes back more often has no way on.
_MOST_ROLLBACKS = 10


class Fitting:
    """The training of a run.

    Args:
        run: what is trained.
        make_trainer: returns a new trainer, the same each time.
        train_source: the training split.
        validation_source: evaluated while training; None: none.

    Attributes:
        trainer: in the state of step `step`.
        history: what the checkpoints know besides arrays: evaluations, times,
            'skipped' batches of data and the 'micro_batch_size'.
    """

    def __init__(
        self,
        run: runs.Run,
        make_trainer: Callable[[], Trainer],
        train_source: Source,
        validation_source: Source | None,
    ):
        self.run = run
        self.make_trainer = make_trainer
        self.train_source = train_source
        self.validation_source = validation_source
        self.stage_of_steps = progressive.stage_of_steps(run.config, run.stages)
        self.learning_rate = schedules.learning_rate(run.config, run.plan)
        self.rollbacks = 0
        self.resume()

    def resume(self) -> None:
        """Makes a trainer in the state of the latest checkpoint."""
        run = self.run
        self.step = 0
        self.history = {
            "evaluations": [],
            "train_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "step_seconds": [0.0, 0.0],
            "best": None,
            "skipped": 0,
            "micro_batch_size": run.config.train.micro_batch_size,
        }
        self.trainer = self.make_trainer()
        latest = checkpoints.load_latest(run.model_dir, run.log)
        if latest is not None:
            self.trainer.restore(latest.arrays, latest.path)
            self.step = latest.meta["step"]
            self.history |= latest.meta["history"]
            run.log(
                f"Resuming at step {self.step:,} of {run.plan.total_steps:,}."
            )
        self.trainer.seconds.assign(self.history["step_seconds"])
        self.trainer.micro_batch_size = self.history["micro_batch_size"]

    def to_the_end(self) -> None:
        """Trains up to the last step; does nothing if it is reached.

        Raises:
            UserError: see `loop.train`.
        """
        while self.step < self.run.plan.total_steps:
            try:
                self._fit()
            except callbacks.NotFiniteError as error:
                self._roll_back(error)
            except tf.errors.ResourceExhaustedError as error:
                self._use_less_memory(error)
            except tf.errors.OpError as error:
                if not distribution.is_lost_worker(error):
                    raise
                raise distribution.WorkerLost(
                    "Another worker does not answer."
                ) from error

    def _roll_back(self, error: callbacks.NotFiniteError) -> None:
        """Goes back to a checkpoint and leaves out the data since."""
        if self.run.config.train.on_nan == "stop":
            raise error
        if self.rollbacks == _MOST_ROLLBACKS:
            raise callbacks.NotFiniteError(
                f"{error} It went back {self.rollbacks} times before.",
                error.step,
            )
        self.rollbacks += 1
        skipped = self.history["skipped"]
        self.resume()
        stretch = error.step + 1 - self.step
        self.history["skipped"] = skipped + stretch
        self.run.log(
            f"The loss was not finite at {self._describe(error.step)}: back to "
            f"step {self.step:,}, without the {stretch:,} batches of data that "
            "led there."
        )

    def _use_less_memory(self, error: tf.errors.ResourceExhaustedError) -> None:
        """Goes back to a checkpoint with smaller micro-batches."""
        train = self.run.config.train
        replicas = self.run.strategy.num_replicas_in_sync
        part = train.batch_size // replicas
        current = min(self.history["micro_batch_size"] or part, part)
        smaller = [
            size
            for size in range(train.batch_parts, current // 2 + 1)
            if part % size == 0 and size % train.batch_parts == 0
        ]
        if not smaller:
            raise OutOfMemoryError(
                f"Out of memory with {current} images at a time. Use a "
                "smaller model, train.isize or train.batch_parts."
            ) from error
        skipped = self.history["skipped"]
        self.trainer = None
        gc.collect()
        self.resume()
        self.history["skipped"] = skipped
        self.history["micro_batch_size"] = smaller[-1]
        self.trainer.micro_batch_size = smaller[-1]
        self.run.log(
            f"Out of memory: from step {self.step:,} on, the gradients of "
            f"{part} images are accumulated over {smaller[-1]} at a time"
            + (f" on each of {replicas} replicas." if replicas > 1 else ".")
        )

    def _describe(self, step: int) -> str:
        stage = self.stage_of_steps[step]
        return (
            f"step {step:,} (stage {stage + 1} of {len(self.run.stages)}, "
            f"learning rate {float(self.learning_rate(step)):.3g})"
        )

    def _fit(self) -> None:
        """Trains from `step` on, by Keras' `fit`."""
        run, config, plan = self.run, self.run.config, self.run.plan
        epoch, first_step = plan.steps_per_epoch, self.step
        drawn = config.train.stage_order == "random"
        self.progress = callbacks.Progress(
            run.stages,
            self.stage_of_steps,
            epoch,
            first_step,
            drawn,
            None if run.is_chief else open(os.devnull, "w"),
        )
        stage_setter = callbacks.Stages(
            run.stages,
            self.stage_of_steps,
            self.progress.log,
            first_step,
            drawn,
        )
        stage_setter.attach(self.trainer.network)
        self.events = callbacks.Events(
            run.model_dir / "tensorboard" if run.is_chief else None
        )
        self.validation = None
        if self.validation_source is not None:
            self.validation = pipeline.evaluation_dataset(
                self.validation_source, config
            )
            self.evaluate = evaluator(self.trainer.ema_network, config)
        self.started = time.monotonic() - self.history["train_seconds"]
        self.seconds_before = self.trainer.seconds.numpy()
        periodic = callbacks.Periodic(
            self._due,
            {"validate": self._validate, "save": self._save},
            60.0 * config.checkpoint.every_minutes,
            self._save,
            first_step,
        )
        calls = [
            stage_setter,
            callbacks.StopOnNonFinite(self._describe, first_step),
            self.progress,
            callbacks.Scalars(
                self.events, self._scalars, max(1, epoch // 50), first_step
            ),
            periodic,
            *run.callbacks,
        ]
        try:
            for first, last in _chunks(first_step, plan.total_steps, epoch):
                length = min(epoch, last - first)
                self.trainer.fit(
                    self._dataset(first),
                    initial_epoch=first // epoch,
                    epochs=first // epoch + -(-(last - first) // length),
                    steps_per_epoch=length,
                    callbacks=calls,
                    shuffle=False,  # the pipeline's part
                    verbose=0,
                )
        except BaseException:
            # What ended the training is the error to show.
            with contextlib.suppress(checkpoints.CheckpointError):
                self.events.flush()
            raise
        finally:
            periodic.restore_handlers()
        self.events.flush()
        self.step = plan.total_steps
        meta = self._meta(self.step)
        if not run.is_chief:
            return
        run.update_metrics(**meta["history"], steps=self.step)
        self.progress.log(
            f"Trained for {self.history['train_seconds'] / 60:.1f} minutes; "
            f"the steps waited for data {self.history['waiting_share']:.1%} "
            "of their time."
        )

    def _dataset(self, first_step: int):
        """Returns the batches from a step on, for all replicas."""
        run = self.run

        def of_worker(number, workers):
            return pipeline.training_dataset(
                self.train_source,
                run.config,
                run.plan,
                run.stages,
                first_step,
                self.history["skipped"],
                (number, workers),
                distribution.augments_on_device(run.strategy, run.config),
            )

        return distribution.distribute(run.strategy, of_worker)

    def _due(self, step: int) -> list[str]:
        """Returns what is to be done after so many steps."""
        if not self.run.is_chief:
            return []
        config, plan = self.run.config, self.run.plan
        epoch, every = plan.steps_per_epoch, config.checkpoint.every_steps
        done = step == plan.total_steps
        due = []
        validation_steps = max(1, round(config.eval.every_epochs * epoch))
        if self.validation is not None and (
            step % validation_steps == 0 or done
        ):
            due.append("validate")
        is_stage_end = config.train.stage_order == "ascending" and any(
            step == stage.last_step for stage in self.run.stages
        )
        if (
            done
            or is_stage_end
            or step % epoch == 0
            or (every and step % every == 0)
        ):
            due.append("save")
        return due

    def _meta(self, step: int) -> dict:
        history, seconds = self.history, self.trainer.seconds.numpy()
        history["train_seconds"] = time.monotonic() - self.started
        # Waiting for batches, and computing.
        history["step_seconds"] = seconds.tolist()
        history["waiting_share"] = waiting_share(seconds)
        return {"step": step, "history": history}

    def _save(self, step: int) -> None:
        if not self.run.is_chief:
            return
        checkpoints.save(
            self.run.model_dir,
            self.trainer.state_arrays(),
            self._meta(step),
            self.run.config.checkpoint.keep,
        )

    def _validate(self, step: int) -> None:
        run, history = self.run, self.history
        start = time.monotonic()
        result = self.evaluate(self.validation)
        now = time.monotonic()
        history["evaluation_seconds"] += now - start
        result |= {
            "step": step,
            "epoch": step / run.plan.steps_per_epoch,
            "train_seconds": now - self.started,
            "evaluation_seconds": history["evaluation_seconds"],
        }
        history["evaluations"].append(result)
        best = history["best"]
        is_best = best is None or result["top1"] >= best["top1"]
        self.progress.log(
            f"epoch {result['epoch']:.4g}: {run.config.eval.val_split} top-1 "
            f"{result['top1']:.2%} top-5 {result['top5']:.2%} "
            f"({result['images']:,} images)" + (", the best" * is_best)
        )
        names = ("top1", "top5", "cross_entropy")
        self.events.write(
            step, {f"validation/{name}": result[name] for name in names}
        )
        if is_best:
            history["best"] = result
        meta = self._meta(step)
        run.update_metrics(**meta["history"])
        if is_best:
            checkpoints.save_best(
                run.model_dir, self.trainer.state_arrays(), meta
            )
        self.progress.restart_clock()

    def _scalars(self, step: int) -> dict[str, float]:
        """Returns what TensorBoard shows besides the metrics."""
        run, before = self.run, self.seconds_before
        self.seconds_before = self.trainer.seconds.numpy()
        stage = run.stages[self.stage_of_steps[step - 1]]
        return {
            "learning_rate": float(self.learning_rate(step - 1)),
            "weight_decay": float(
                schedules.weight_decay(run.config, run.plan, step - 1)
            ),
            "image_size": stage.image_size,
            "dropout_rate": stage.dropout_rate,
            "images_per_second": self.progress.images_per_second(),
            "waiting_share": waiting_share(self.seconds_before - before),
        }


class OutOfMemoryError(UserError):
    """There is too little memory for even the smallest part of a batch."""

    exit_code = 1


def evaluator(network: keras.Model, config: ml_collections.ConfigDict):
    """Returns the function from a dataset to metrics that a run uses."""
    return evaluation.make_evaluator(
        network,
        config.train.batch_parts,
        runs.uses_xla(config),
        config.train.loss_type,
    )


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
