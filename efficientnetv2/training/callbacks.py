"""Keras callbacks: stages, progress, TensorBoard, checkpoints, evaluation.

Each reads the step from the trainer, so all agree in a resumed run.
"""

import contextlib
import math
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2.errors import UserError
from efficientnetv2.formatting import format_seconds
from efficientnetv2.training import checkpoints, progressive


class NotFiniteError(UserError):
    """The loss became NaN or infinite.

    Attributes:
        step: at which it was so.
    """

    exit_code = 1

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Interrupted(UserError):
    """SIGTERM or Ctrl-C arrived; a checkpoint was written."""

    exit_code = 143


class Stages(keras.callbacks.Callback):
    """Sets the dropout rate of the stage and announces each stage.

    Args:
        stages: of the run.
        stage_of_steps: see `progressive.stage_of_steps`.
        log: prints one line.
        first_step: of this fit.
        drawn: whether stages are drawn at random; they are announced once.
    """

    def __init__(
        self,
        stages: Sequence[progressive.Stage],
        stage_of_steps: np.ndarray,
        log: Callable[[str], None],
        first_step: int,
        drawn: bool = False,
    ):
        super().__init__()
        self.stages = stages
        self.stage_of_steps = stage_of_steps
        self.log = log
        self.drawn = drawn
        self.next_step = first_step
        self.current = -1
        self.rate = tf.Variable(
            stages[0].dropout_rate, trainable=False, dtype=tf.float32
        )

    def attach(self, network: keras.Model) -> None:
        """Makes the network's head take its dropout rate from here."""
        network.get_layer("head").dropout.rate_variable = self.rate

    def on_train_batch_begin(self, batch, logs=None):
        index = self.stage_of_steps[self.next_step]
        self.next_step += 1
        if index == self.current:
            return
        is_first, self.current = self.current < 0, index
        stage = self.stages[index]
        self.rate.assign(stage.dropout_rate)
        if not self.drawn:
            self.log(
                f"Stage {index + 1} of {len(self.stages)}: images of "
                f"{stage.image_size} pixels"
            )
        elif is_first:
            sizes = sorted({stage.image_size for stage in self.stages})
            self.log(
                f"Each step draws one of {len(self.stages)} stages: images of "
                f"{' or '.join(map(str, sizes))} pixels"
            )


class Progress(keras.callbacks.Callback):
    """A line with loss, top-1, images/s, stage and time left.

    On a terminal the line is redrawn; elsewhere one is written after the first
    step, every half minute and at the end.

    Args:
        stages: of the run.
        stage_of_steps: see `progressive.stage_of_steps`.
        steps_per_epoch: to show steps as epochs.
        first_step: of this fit.
        drawn: whether stages are drawn at random; the throughput is then over
            all of them.
        stream: to write to, stdout by default.
    """

    def __init__(
        self,
        stages: Sequence[progressive.Stage],
        stage_of_steps: np.ndarray,
        steps_per_epoch: int,
        first_step: int,
        drawn: bool = False,
        stream=None,
    ):
        super().__init__()
        self.stages = stages
        self.stage_of_steps = stage_of_steps
        self.steps_per_epoch = steps_per_epoch
        self.drawn_stages = drawn
        self.total = len(stage_of_steps)
        images = np.array([stage.batch_size for stage in stages])
        pixels = images * [stage.image_size**2 for stage in stages]
        # Of all steps before a step.
        self.images_before, self.pixels_before = (
            np.concatenate([[0], np.cumsum(of_stages[stage_of_steps])])
            for of_stages in (images, pixels)
        )
        self.step = first_step
        self.stream = stream or sys.stdout
        self.redraws = self.stream.isatty()
        self.drawn = 0
        self.last_shown = -math.inf
        self.window: list[tuple[int, float]] = []
        self.seconds_per_pixel = math.nan

    def log(self, text: str) -> None:
        """Prints a line of its own, above the redrawn one."""
        if self.drawn:
            self.stream.write("\r" + " " * self.drawn + "\r")
            self.drawn = 0
        print(text, file=self.stream, flush=True)

    def on_train_batch_end(self, batch, logs=None):
        stage_number = self.stage_of_steps[self.step]
        now = time.monotonic()
        if (
            self.window
            and not self.drawn_stages
            and self.stage_of_steps[self.step - 1] != stage_number
        ):
            self.restart_clock()
        self.step += 1
        self.window.append((self.step, now))
        if len(self.window) > 50:
            del self.window[0]
        interval = 0.5 if self.redraws else 30.0
        if now - self.last_shown >= interval or self.step == self.total:
            self.last_shown = now
            self._show(logs or {})

    def restart_clock(self) -> None:
        """Leaves the time since the last step out of the throughput."""
        self.window.clear()

    def images_per_second(self) -> float:
        """Throughput over the last 50 steps of the stage; 0 if unknown."""
        if len(self.window) < 2:
            return 0.0
        (first, start), (last, end) = self.window[0], self.window[-1]
        images = self.images_before[last] - self.images_before[first]
        return images / max(end - start, 1e-9)

    def seconds_left(self) -> float:
        """Time to the last step; a step's cost goes with its pixels."""
        before = self.pixels_before
        if len(self.window) > 1:
            (first, start), (last, end) = self.window[0], self.window[-1]
            pixels = before[last] - before[first]
            self.seconds_per_pixel = max(end - start, 1e-9) / pixels
        return (before[-1] - before[self.step]) * self.seconds_per_pixel

    def _show(self, logs):
        stage_number = self.stage_of_steps[self.step - 1]
        left, rate = self.seconds_left(), self.images_per_second()
        share = self.step / self.total
        bar = "=" * int(20 * share)
        text = (
            f"[{bar:<20}] {share:4.0%} epoch "
            f"{self.step / self.steps_per_epoch:.2f}/"
            f"{self.total / self.steps_per_epoch:.4g} "
            f"stage {stage_number + 1}/{len(self.stages)} "
            f"({self.stages[stage_number].image_size} px) "
            f"loss {logs.get('loss', math.nan):.3f} "
            f"top-1 {logs.get('top1', math.nan):.1%} "
            + (f"{rate:.0f} images/s " if rate else "")
            + f"{format_seconds(left)} left"
        )
        if self.redraws:
            self.stream.write("\r" + text.ljust(self.drawn))
            self.drawn = len(text)
            self.stream.flush()
            if self.step == self.total:
                self.stream.write("\n")
                self.drawn = 0
        else:
            print(text, file=self.stream, flush=True)


class Events:
    """A file of TensorBoard scalars.

    Args:
        folder: where it is made; None: nothing is written.

    Raises:
        CheckpointError: here and in the methods, if the disk is full or the
            folder not writable.
    """

    def __init__(self, folder: pathlib.Path | None):
        self.folder = folder
        with self._errors_of_users():
            self.writer = (
                tf.summary.create_noop_writer()
                if folder is None
                else tf.summary.create_file_writer(str(folder))
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        with self._errors_of_users(), self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def flush(self) -> None:
        """Makes all that was written visible to others."""
        with self._errors_of_users():
            self.writer.flush()

    @contextlib.contextmanager
    def _errors_of_users(self) -> Iterator[None]:
        # TensorFlow has one error for a full disk and for too little memory,
        # on which a run would go on with smaller micro-batches.
        try:
            yield
        except tf.errors.OpError as error:
            # '{{node}} file; reason [Op:name]', and more lines.
            line = error.message.partition("\n")[0].partition(" [Op:")[0]
            reason = line.rpartition("}} ")[2].rpartition("; ")[2]
            raise checkpoints.cannot_write(self.folder, reason) from error


class Scalars(keras.callbacks.Callback):
    """Writes TensorBoard scalars: means over the steps since the last."""

    def __init__(
        self,
        events: Events,
        values: Callable[[int], dict[str, float]],
        every: int,
        first_step: int,
    ):
        super().__init__()
        self.events = events
        self.values = values
        self.every = every
        self.step = first_step
        self.means: dict[str, float] = {}
        self.count = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.means, self.count = {}, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self.every:
            return
        count = batch + 1
        scalars = {}
        for name, mean in (logs or {}).items():
            # Keras gives the mean since the epoch began.
            before = self.means.get(name, 0.0) * self.count
            scalars[name] = (mean * count - before) / (count - self.count)
        scalars |= self.values(self.step)
        self.events.write(
            self.step,
            {f"train/{name}": value for name, value in scalars.items()},
        )
        self.means, self.count = dict(logs or {}), count


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends training at the first loss that is NaN or infinite."""

    def __init__(self, describe: Callable[[int], str], first_step: int):
        super().__init__()
        self.describe = describe
        self.step = first_step

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise NotFiniteError(
                f"The loss is not finite at {self.describe(self.step)}. The "
                "last checkpoint is from before. Lower train.lr_base, set "
                "train.gclip, or lengthen train.lr_warmup_epoch; "
                "train.on_nan=rollback goes back and leaves that data out.",
                self.step,
            )
        self.step += 1


class Periodic(keras.callbacks.Callback):
    """Calls functions at given steps and every few minutes.

    Args:
        at_steps: function from step to the names of the actions due.
        actions: name to function of the step, called in this order.
        every_seconds: how often `timed` is called besides.
        timed: function of the step.
        first_step: of this fit.
    """

    def __init__(
        self,
        at_steps: Callable[[int], Sequence[str]],
        actions: dict[str, Callable[[int], None]],
        every_seconds: float,
        timed: Callable[[int], None],
        first_step: int,
    ):
        super().__init__()
        self.at_steps = at_steps
        self.actions = actions
        self.every_seconds = every_seconds
        self.timed = timed
        self.step = first_step
        self.last = time.monotonic()
        self.signal: int | None = None
        self.handlers: dict = {}

    def on_train_begin(self, logs=None):
        # Python delivers signals to the main thread only.
        if threading.current_thread() is not threading.main_thread():
            return
        self.handlers = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def on_train_end(self, logs=None):
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Gives the signals back to whom they belonged."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _receive(self, number, frame):
        self.signal = number

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        due = self.at_steps(self.step)
        for name, action in self.actions.items():
            if name in due:
                action(self.step)
        now = time.monotonic()
        if self.signal is not None or now - self.last >= self.every_seconds:
            self.timed(self.step)
            self.last = now
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Interrupted(
                f"{name} at step {self.step}: a checkpoint was written. The "
                "same command goes on from there."
            )
