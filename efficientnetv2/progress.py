"""Progress of long work: lines, bars and TensorBoard scalars."""

import contextlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ml_collections
import tqdm

from efficientnetv2 import files
from efficientnetv2.formatting import (
    format_seconds,
    terminal_width,
    wrapped,
)

_WINDOW = 50  # steps over which throughput is averaged
# Columns of a percentage and a bar; tqdm draws 10 where it knows no width.
_BESIDE = 16
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}"
_SHOWN_AFTER = 0.5  # seconds; what is faster shows no bar
Item = TypeVar("Item")


def redraws(stream) -> bool:
    """Whether a stream is a terminal or a notebook, where lines are redrawn."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


def has_colour(stream) -> bool:
    """Whether a stream is a terminal whose user has not set NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def say(text: str) -> None:
    """Prints lines on stdout, above a bar if there is one."""
    tqdm.tqdm.write(wrapped(text, sys.stdout), file=sys.stdout)
    sys.stdout.flush()


@contextlib.contextmanager
def lines_above() -> Iterator[None]:
    """Prints above a bar whatever is printed meanwhile, if there is one."""
    with tqdm.tqdm.external_write_mode():
        yield
        sys.stdout.flush()


def track(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    unit: str = "images",
) -> Iterator[Item]:
    """Yields items while a bar on stderr counts them.

    The bar appears on terminals and in notebooks if the work takes long enough,
    and disappears at the end.

    Args:
        items: of the work.
        what: the work, such as 'Evaluating'.
        total: number of items; by default their length, if they have one.
        unit: what an item is, in the plural.
    """
    with bar(what, total or getattr(items, "__len__", int)(), unit) as shown:
        for item in items:
            yield item
            shown.update()


def bar(what: str, total: int, unit: str = "images") -> tqdm.tqdm:
    """Returns a bar on stderr whose `update` counts; see `track`."""
    return tqdm.tqdm(
        desc=what,
        total=total or None,
        unit=unit,
        file=sys.stderr,
        leave=False,
        # In the place of the bar of a training that waits for this.
        position=0,
        delay=_SHOWN_AFTER,
        dynamic_ncols=True,
        bar_format=_BAR,
        disable=not redraws(sys.stderr),
        colour="green" if has_colour(sys.stderr) else None,
    )


class Clock:
    """Measures how long steps wait for data and how long they compute.

    Kept in a run's history: 'train_seconds', 'step_seconds' (waiting,
    computing) and 'waiting_share'.
    """

    def __init__(self, history: dict[str, Any]):
        self.history = history

    def __enter__(self) -> "Clock":
        self.began = time.monotonic() - self.history["train_seconds"]
        self.seconds = list(self.history["step_seconds"])
        self.before = list(self.seconds)
        self.kind = self.mark = None
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        self.record()

    def wait(self) -> None:
        """Counts the time from now on as waiting."""
        self._switch(0)

    def compute(self) -> None:
        """Counts the time from now on as computing."""
        self._switch(1)

    def stop(self) -> None:
        """Counts the time from now on as neither."""
        self._switch(None)

    def _switch(self, kind: int | None) -> None:
        now = time.monotonic()
        if self.kind is not None:
            self.seconds[self.kind] += now - self.mark
        self.kind, self.mark = kind, now

    def record(self) -> None:
        """Writes the times so far into the history."""
        self.history["train_seconds"] = time.monotonic() - self.began
        self.history["step_seconds"] = list(self.seconds)
        self.history["waiting_share"] = _share(*self.seconds)

    def take_waiting_share(self) -> float:
        """Returns the share of waiting since the last call."""
        spent = [
            now - then
            for now, then in zip(self.seconds, self.before, strict=True)
        ]
        self.before = list(self.seconds)
        return _share(*spent)


def _share(waiting: float, computing: float) -> float:
    return waiting / max(waiting + computing, 1e-9)


class Events:
    """A file of TensorBoard scalars.

    Args:
        folder: for the file.
        is_written: whether anything is written.

    Raises:
        CheckpointError: here and in the methods, if the disk is full or the
            folder not writable.
    """

    def __init__(self, folder: pathlib.Path, is_written: bool = True):
        import tensorflow as tf

        self.tf, self.folder = tf, folder
        with self._named_errors():
            self.writer = (
                tf.summary.create_file_writer(str(folder))
                if is_written
                else tf.summary.create_noop_writer()
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        with self._named_errors(), self.writer.as_default(step=step):
            for name, value in values.items():
                self.tf.summary.scalar(name, value)

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            with self._named_errors():
                self.writer.flush()
        except files.CheckpointError:
            # What ended the training is the error to show.
            if error is None:
                raise

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        # TensorFlow has one error for a full disk and for too little memory,
        # after which a run would continue with smaller micro-batches.
        try:
            yield
        except self.tf.errors.OpError as error:
            # '{{node}} file; reason [Op:name]', and more lines.
            line = error.message.partition("\n")[0].partition(" [Op:")[0]
            reason = line.rpartition("}} ")[2].rpartition("; ")[2]
            raise files.cannot_write(self.folder, reason) from error


class Progress:
    """A progress bar with stage, loss, top-1, images/s and time left.

    On a terminal and in a notebook one line is redrawn; elsewhere a line is
    written after the first step, every half minute and at the end.

    Args:
        config: of the run.
        plan: of the run, `progressive.RunPlan`.
        first_step: from which it trains.
        is_shown: whether anything is written.
        stream: to write to, stdout by default.

    Attributes:
        latest: the metrics as they were read last.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        plan: Any,
        first_step: int,
        is_shown: bool = True,
        stream=None,
    ):
        # Commands that show a bar alone do not wait for NumPy.
        import numpy as np

        self.stages, self.order = plan.stages, plan.stage_of_steps
        self.split = config.eval.val_split
        self.step, self.total = first_step, plan.total_steps
        self.is_random = plan.draw_seed is not None
        self.stream = stream or sys.stdout
        if not is_shown:
            self.stream = open(os.devnull, "w")
        self.redraws = redraws(self.stream)
        images = np.array([stage.batch_size for stage in plan.stages])
        pixels = images * [stage.image_size**2 for stage in plan.stages]
        # Of all steps before a step.
        self.images_before, self.pixels_before = (
            np.concatenate([[0], np.cumsum(of_stages[self.order])])
            for of_stages in (images, pixels)
        )
        self.window: list[tuple[int, float]] = []
        self.seconds_per_pixel = math.nan
        self.last_shown = -math.inf
        self.stage_index: int | None = None
        self.unread: list[Mapping] = []
        self.read_values: list[dict[str, float]] = []
        self.latest: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        self.bar = tqdm.tqdm(
            total=self.total,
            initial=self.step,
            file=self.stream,
            dynamic_ncols=True,
            mininterval=0.2,
            miniters=1,
            bar_format="{percentage:3.0f}%|{bar}|{desc}",
            disable=not self.redraws,
            position=0,
            colour="green" if has_colour(self.stream) else None,
        )
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def log(self, text: str) -> None:
        """Prints a line of its own, above the redrawn one."""
        if self.redraws:
            self.bar.write(wrapped(text, self.stream), file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def enter(self, step: int):
        """Announces the stage of a step if it is a new one; returns it."""
        index, stages = self.order[step], self.stages
        is_first, is_new = self.stage_index is None, index != self.stage_index
        self.stage_index = index
        if self.is_random and is_first:
            *sizes, largest = sorted({stage.image_size for stage in stages})
            smaller = f"{', '.join(map(str, sizes))} or " if sizes else ""
            self.log(
                f"Each step draws one of {len(stages)} stages: images of "
                f"{smaller}{largest} pixels"
            )
        elif is_new and not self.is_random:
            self.restart_clock()
            self.log(
                f"Stage {index + 1} of {len(stages)}: images of "
                f"{stages[index].image_size} pixels"
            )
        return stages[index]

    def add(self, metrics: Mapping) -> None:
        """Counts a step; its metrics stay on the device until `read`."""
        self.unread.append(metrics)
        self.step += 1
        now = time.monotonic()
        self.window.append((self.step, now))
        del self.window[:-_WINDOW]
        interval = 0.5 if self.redraws else 30.0
        if now - self.last_shown >= interval or self.step == self.total:
            self.last_shown = now
            self._show()

    def read(self) -> None:
        """Reads the metrics of the steps since the last time."""
        for metrics in self.unread:
            self.latest = {name: float(v) for name, v in metrics.items()}
            self.read_values.append(self.latest)
        self.unread = []

    def take_means(self) -> dict[str, float]:
        """Returns the means of what was read since the last call."""
        rows, self.read_values = self.read_values, []
        return {
            name: sum(row[name] for row in rows) / len(rows)
            for name in (rows[0] if rows else ())
        }

    def evaluated(self, result: Mapping, is_best: bool) -> None:
        """Logs an evaluation; its time does not count as step time."""
        self.log(
            f"Epoch {result['epoch']:.4g}: {self.split} "
            f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%} "
            f"({result['images']:,} images)" + (", best so far" * is_best)
        )
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last step out of the throughput."""
        self.window.clear()

    def images_per_second(self) -> float:
        """Throughput over the last steps of the stage; 0 if unknown."""
        if len(self.window) < 2:
            return 0.0
        (first, start), (last, end) = self.window[0], self.window[-1]
        images = self.images_before[last] - self.images_before[first]
        return images / max(end - start, 1e-9)

    def seconds_left(self, until: int | None = None) -> float:
        """Time to a step, by default the last; a step costs by its pixels."""
        before = self.pixels_before
        if len(self.window) > 1:
            (first, start), (last, end) = self.window[0], self.window[-1]
            pixels = before[last] - before[first]
            self.seconds_per_pixel = max(end - start, 1e-9) / pixels
        left = before[self.total if until is None else until]
        return (left - before[self.step]) * self.seconds_per_pixel

    def _show(self) -> None:
        if self.step == self.total or not self.latest:
            self.read()
        if self.redraws:
            self.bar.set_description_str(
                self.describe(terminal_width() - _BESIDE), refresh=False
            )
            self.bar.n = self.step
            self.bar.refresh()
        else:
            share = f"{self.step / self.total:4.0%} "
            print(share + self.describe(75), file=self.stream, flush=True)

    def describe(self, width: int) -> str:
        """Returns as much about the step as fits a number of columns."""
        index = self.order[self.step - 1]
        stage, place = self.stages[index], f"{index + 1}/{len(self.stages)}"
        loss, top1 = (self.latest.get(k, math.nan) for k in ("loss", "top1"))
        rate, left = self.images_per_second(), self.seconds_left()
        run_left = format_seconds(left)
        stage_left = format_seconds(self.seconds_left(stage.last_step))
        # Unknown until two steps are done.
        speed = [f"{rate:,.0f} images/s"] if rate else []
        ends, both, short = [], [], []
        if math.isfinite(left):
            ends = [f"stage ends in {stage_left}, run in {run_left}"]
            both, short = [f"stage {stage_left} run {run_left}"], [run_left]
            if self.is_random:
                ends, both = [f"run ends in {run_left}"], [f"{run_left} left"]
        size = stage.image_size
        metrics = [f"loss {loss:.3f}", f"top-1 {top1:.1%}"]
        for separator, parts in (
            ("  ", [f"stage {place} of {size} px", *metrics, *speed, *ends]),
            ("  ", [f"{place} {size}px", *metrics, *speed, *both]),
            (" ", [f"{place} {size}px", *metrics, *speed, *both]),
            (" ", [f"{place} {size}px", *metrics, *speed, *short]),
            (" ", [f"{place} {size}px", metrics[0], *short]),
            (" ", [f"{size}px {loss:.2f}", *short]),
        ):
            text = " " + separator.join(parts)
            if len(text) <= width:
                break
        return text
