"""What a run would do and cost, before it is trained."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import keras
import ml_collections

from efficientnetv2 import engines, notices, progress, runs, speed
from efficientnetv2.config import run_plan
from efficientnetv2.data import faults, pipeline, registry
from efficientnetv2.formatting import format_seconds
from efficientnetv2.notices import lacks_accelerator
from efficientnetv2.progressive import RunPlan

_WARM_UP = 2
_STEPS = 8
# A stage is not timed for longer, once it has three steps.
_SECONDS = 20.0


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
    plan, data = run_plan(config), runs.Splits(config, log)
    engines.set_up(config)
    log(_describe_data(config, plan))
    engine = engines.create(config, plan)
    notices.announce(config, plan, engine, log)
    timing = _measure(config, plan, data, engine, start)
    rates = "; ".join(f"{rate:,.0f}" for rate in timing.images_per_second)
    seconds = estimate(config, plan, timing)
    log(f"Training, measured: {rates} images/s by stage.")
    log(f"Evaluation, measured: {timing.evaluation:,.0f} images/s.")
    memory = f"Peak memory so far: {timing.memory / 2**30:.1f} GiB"
    if timing.device_memory:
        memory += f", of the device {timing.device_memory / 2**30:.1f} GiB"
    log(f"{memory}.")
    log(f"Estimated time of the whole run: {format_seconds(seconds)}.")
    log("Nothing was written; without --dry_run the run begins.")
    return seconds


def _describe_data(config: ml_collections.ConfigDict, plan: RunPlan) -> str:
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
        f"{', '.join(parts)}; {plan.steps_per_epoch:,} steps per epoch, "
        f"{plan.total_steps:,} in all"
    )


def _measure(config, plan, data, engine, start: float) -> Timing:
    source = data[config.train.split]
    rates, start_seconds = [], None
    with faults.named(source):
        for stage in plan.stages:
            make_dataset = speed.stage_maker(
                config, plan, stage, source, engine.augments, _WARM_UP + _STEPS
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
        _evaluation_rate(config, data, engine),
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


def _evaluation_rate(config, data, engine) -> float:
    """Returns images/s of the evaluation, its pipeline included."""
    source = data[config.eval.val_split or config.eval.split]
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


def estimate(
    config: ml_collections.ConfigDict, plan: RunPlan, timing: Timing
) -> float:
    """Returns the seconds of a whole run, from start to report.

    Args:
        config, plan: of the run, whose stages and evaluations count.
        timing: measured.
    """
    counts = [stage.last_step - stage.first_step for stage in plan.stages]
    training = sum(
        count * stage.batch_size / rate
        for count, stage, rate in zip(
            counts, plan.stages, timing.images_per_second, strict=True
        )
    )
    info = registry.load_info(config.data.ds_name)
    images = registry.num_images(info, config.eval.split, config)
    if config.eval.val_split:
        times = sum(plan.evaluates(step) for step in range(1, plan.total_steps))
        validation = registry.num_images(info, config.eval.val_split, config)
        images += (times + 1) * validation
    return timing.start_seconds + training + images / timing.evaluation


def _device_memory() -> int | None:
    if lacks_accelerator():
        return None
    if keras.config.backend() == "jax":
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
