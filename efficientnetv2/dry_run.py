"""What a run would do and cost, before it is trained."""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import keras
import ml_collections

from efficientnetv2 import engines, progress, runs, speed
from efficientnetv2.data import faults, pipeline, registry
from efficientnetv2.formatting import format_seconds
from efficientnetv2.models import counting
from efficientnetv2.train import announce

_WARM_UP = 2
_STEPS = 8
# A stage is not timed for longer, once it has three steps.
_SECONDS = 20.0
# Multiply-adds of a forward pass that a CPU core trains per second: those of
# efficientnetv2-b0 at 224 pixels at 17 images/s on two cores.
_PER_CORE = 0.5 * 17 * 718e6
# A run that takes longer is announced.
_SLOW = 3600.0


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of a run.

    Attributes:
        images_per_second: of training in each stage, with its pipeline.
        evaluation: images/s of the evaluation.
        start_seconds: until the first step was done.
        memory: the most memory that the process has had, in bytes.
        device_memory: likewise of the accelerator; None on a CPU.
    """

    images_per_second: list[float]
    evaluation: float
    start_seconds: float
    memory: int
    device_memory: int | None


def report(
    config: ml_collections.ConfigDict, log: Callable[[str], None] = progress.say
) -> float:
    """Logs data, model, stages, and the measured time and memory of a run.

    Nothing is written. The data are fetched or prepared if they are not here.

    Args:
        config: of the run.
        log: prints one line.

    Returns:
        The estimated seconds of the whole run.

    Raises:
        UserError: for data that cannot be obtained, or weights.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = runs.make_run(config, folder, log)
        engines.set_up(config)
        log(_describe_data(run))
        engine = engines.create(config, run.plan, log)
        announce(run, engine)
        timing = _measure(run, engine, start)
    rates = "; ".join(f"{rate:,.0f}" for rate in timing.images_per_second)
    seconds = estimate(run, timing)
    log(f"Training, measured: {rates} images/s by stage.")
    log(f"Evaluation, measured: {timing.evaluation:,.0f} images/s.")
    memory = f"Peak memory so far: {timing.memory / 2**30:.1f} GiB"
    if timing.device_memory:
        memory += f", of the device {timing.device_memory / 2**30:.1f} GiB"
    log(f"{memory}.")
    log(f"Estimated time of the whole run: {format_seconds(seconds)}.")
    warning = slow_warning(run, seconds)
    if warning:
        log(warning)
    log("Nothing was written; without --dry_run the run begins.")
    return seconds


def _describe_data(run: runs.Run) -> str:
    config = run.config
    info = registry.load_info(config.data.ds_name)
    parts = [
        f"{registry.num_images(info, split, config):,} images to {use} "
        f"({split})"
        for use, split in (
            ("train", config.train.split),
            ("validate", config.eval.val_split),
            ("test", config.eval.split),
        )
        if split
    ]
    return (
        f"{config.data.ds_name}: {info.num_classes:,} classes, "
        f"{', '.join(parts)}; {run.plan.steps_per_epoch:,} steps per epoch, "
        f"{run.plan.total_steps:,} in all"
    )


def _measure(run: runs.Run, engine, start: float) -> Timing:
    config = run.config
    source = run.split(config.train.split)
    rates, start_seconds = [], None
    with faults.named(source):
        for stage in run.stages:
            # Twice what is used: a pipeline that reads no further is faster.
            total = 2 * (_WARM_UP + _STEPS)
            plan = dataclasses.replace(run.plan, total_steps=total)
            of_stage = [
                dataclasses.replace(stage, first_step=0, last_step=total)
            ]

            def make_dataset(number, count, plan=plan, of_stage=of_stage):
                return pipeline.training_dataset(
                    source, config, plan, of_stage, part=(number, count)
                )

            batches = iter(engine.dataset(make_dataset))

            def step(batches=batches, rate=stage.dropout_rate):
                # Reading the loss waits for the end of the step.
                float(engine.step(next(batches), rate)["loss"])

            for _ in range(_WARM_UP):
                step()
                start_seconds = start_seconds or time.perf_counter() - start
            rates.append(stage.batch_size / _seconds_per_call(step))
    return Timing(
        rates,
        _evaluation_rate(run, engine),
        start_seconds,
        speed.peak_memory(),
        _device_memory(),
    )


def _seconds_per_call(function: Callable[[], None]) -> float:
    """Returns the mean time of a call, without the slowest one."""
    seconds: list[float] = []
    while len(seconds) < _STEPS and (
        len(seconds) < 3 or sum(seconds) < _SECONDS
    ):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.mean(sorted(seconds)[:-1])


def _evaluation_rate(run: runs.Run, engine) -> float:
    """Returns images/s of the evaluation, its pipeline included."""
    config = run.config
    source = run.split(config.eval.val_split or config.eval.split)
    batches = pipeline.evaluation_dataset(source, config).as_numpy_iterator()
    engine.logits(next(batches)[0])
    start, images = time.perf_counter(), 0
    for batch, _ in batches:
        engine.logits(batch)
        images += len(batch)
        if images >= _STEPS * config.eval.batch_size:
            break
    seconds = time.perf_counter() - start
    return images / seconds if images else float("inf")


def estimate(run: runs.Run, timing: Timing) -> float:
    """Returns the seconds of a whole run, from start to report.

    Args:
        run: whose stages and evaluations count.
        timing: measured.
    """
    config, plan = run.config, run.plan
    counts = [stage.last_step - stage.first_step for stage in run.stages]
    training = sum(
        count * stage.batch_size / rate
        for count, stage, rate in zip(
            counts, run.stages, timing.images_per_second, strict=True
        )
    )
    info = registry.load_info(config.data.ds_name)
    images = registry.num_images(info, config.eval.split, config)
    if config.eval.val_split:
        times = sum(run.evaluates(step) for step in range(1, plan.total_steps))
        validation = registry.num_images(info, config.eval.val_split, config)
        images += (times + 1) * validation
    return timing.start_seconds + training + images / timing.evaluation


def expected_seconds(run: runs.Run, cores: int | None = None) -> float:
    """Returns about how long a CPU trains a run, before anything is measured.

    Args:
        run: to be trained.
        cores: of the CPU; None: those of this machine.
    """
    cores = cores or len(os.sched_getaffinity(0))
    total = 0.0
    for stage in run.stages:
        rows = counting.count_stages(
            run.config.model.to_dict(), stage.image_size
        )
        images = (stage.last_step - stage.first_step) * stage.batch_size
        total += images * counting.total(rows).multiply_adds
    return total / (_PER_CORE * cores)


def slow_warning(run: runs.Run, seconds: float) -> str | None:
    """Returns what to say of a run that a CPU trains for long, else None.

    Args:
        run: to be trained.
        seconds: that it takes.
    """
    if seconds < _SLOW or not on_cpu():
        return None
    model = run.config.model.model_name
    ways = ["a smaller --image_size", "fewer --epochs"]
    if model != "efficientnetv2-pico":
        ways.insert(0, "--model_name=efficientnetv2-pico")
    if not run.config.train.ft_init_ckpt:
        ways.append("weights to start from (train.ft_init_ckpt)")
    largest = max(stage.image_size for stage in run.stages)
    return (
        f"Warning: about {seconds / 3600:.1f} hours on this CPU, for {model} "
        f"with images of up to {largest} pixels. Faster: {', '.join(ways)}, or "
        "a GPU. --dry_run measures the time."
    )


def warn_if_slow(run: runs.Run) -> None:
    """Logs a warning before a run that a CPU would train for hours."""
    warning = slow_warning(run, expected_seconds(run))
    if warning:
        run.log(warning)


def on_cpu() -> bool:
    """Whether the backend sees no accelerator."""
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def _device_memory() -> int | None:
    if on_cpu():
        return None
    if keras.config.backend() == "jax":
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
