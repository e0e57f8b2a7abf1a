"""How fast training and inference are, and what a run would cost.

`efficientnetv2 benchmark`, studies and benchmarks/run.py measure by it. Each
of their measurements is a process of its own (`apart`), so that the peak of
memory is its own, and the threads are those that training or serving would
have. --dry_run measures in this process.
"""

import functools
import itertools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import keras
import ml_collections
import numpy as np
import tensorflow as tf
import yaml

from efficientnetv2 import config as config_lib
from efficientnetv2 import engines, formatting, notices, progress, runs
from efficientnetv2.data import faults, loading, pipeline, registry
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture, kernels, structure
from efficientnetv2.progressive import RunPlan, Stage
from efficientnetv2.serving import converters
from efficientnetv2.serving.spec import ServingSpec

BATCH_SIZES = (1, 8, 32)
"""Batch sizes whose latency is measured."""
_WARM_UP = 3
# The file that `efficientnetv2 benchmark --model_dir` writes to a run.
INFERENCE = "inference.json"
# Of each stage in a dry run: at most so many are timed, for at most so long.
_DRY_STEPS, _DRY_SECONDS = 8, 20.0


def _silent(_: str) -> None:
    """Logs nothing."""


# --- A run as a whole --------------------------------------------------------


def measure(
    config: ml_collections.ConfigDict, steps: int, calls: int, log=print
) -> dict:
    """Measures everything that `efficientnetv2 benchmark` shows.

    Args:
        steps, calls: of training and of inference, in each measurement.
    """
    machine = apart("machine", config)
    stages = measure_stages(config, steps, log)
    log("Inference and the first step ...")
    return {
        "model_name": config.model.model_name,
        "machine": {**machine, "command": formatting.command_line()},
        "stages": stages,
        "waiting_share": waiting_share(stages),
        "latency": apart("latency", config, calls),
        "first_step_seconds": first_step_seconds(config),
    }


def measure_stages(
    config: ml_collections.ConfigDict, steps: int, log=_silent
) -> list[dict]:
    """Returns `measure_stage` of each stage."""
    results = []
    for index in range(config.train.stages):
        log(f"Stage {index + 1} of {config.train.stages} ...")
        results.append(apart("stage", config, index, steps))
    return results


def waiting_share(stages: Sequence[Mapping]) -> float:
    """Returns which part of its time a run waits for data, in [0, 1].

    Each stage, of `measure_stages`, counts by its time in the run.
    """
    seconds = [
        stage["steps"] * stage["batch_size"] / stage["both"] for stage in stages
    ]
    shares = [stage["waiting_share"] for stage in stages]
    return float(np.average(shares, weights=seconds))


def apart(name: str, config: ml_collections.ConfigDict, *arguments):
    """Returns what one of `_MEASUREMENTS` gives in a new process.

    Its arguments are given as JSON has them. UserError if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "efficientnetv2.speed", name]
        + [json.dumps(each) for each in arguments],
        input=config_lib.to_yaml(config),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"Measuring {name} failed: {done.stderr.strip()}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def first_step_seconds(config: ml_collections.ConfigDict) -> float:
    """Returns the time from the program's start to the end of its first step.

    With all imports and building; the data must be prepared. UserError if the
    program ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "config.yaml")
        path.write_text(config_lib.to_yaml(config), encoding="utf-8")
        return seconds_to_line(
            [sys.executable, "-m", "efficientnetv2.main", "--mode=train"]
            + [f"--hparam_str={path}", f"--model_dir={folder}/run"],
            " loss ",
        )


def seconds_to_line(command: Sequence[str], text: str) -> float:
    """Returns the time from starting a program to a line with a text on stdout.

    The program is ended then. UserError if it ends without such a line.
    """
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            for line in process.stdout:
                if text in line:
                    return time.perf_counter() - start
            process.wait()
            errors.seek(0)
            raise UserError(
                f"{' '.join(command)} ended with exit code "
                f"{process.returncode}: {errors.read().strip()}"
            )
        finally:
            process.kill()
            process.communicate()


# --- In a separate process -------------------------------------------------


def _repeat(function: Callable[[], object], times: int) -> float:
    """Returns the seconds that so many calls take."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


def peak_memory() -> int:
    """Returns the peak memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def stage_maker(
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    stage: Stage,
    source: loading.Source,
    on_device: bool,
    steps: int,
) -> Callable[..., Iterable]:
    """Returns a function that makes one stage's batches, for `Engine.dataset`.

    Args:
        on_device: see `pipeline.training_dataset`.
        steps: to use, of twice as many: a pipeline that has stopped reading
            ahead is faster.
    """
    return functools.partial(
        pipeline.training_dataset,
        source,
        config,
        plan.only(stage, 2 * steps),
        on_device=on_device,
    )


class _Steps:
    """Makes a step each time it is called; `waited` seconds for batches."""

    def __init__(self, engine, stage: Stage, batches: Iterator):
        self.engine, self.stage, self.batches = engine, stage, batches
        self.waited = 0.0

    def __call__(self) -> None:
        start = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - start
        # Reading the loss waits for the end of the step.
        float(self.engine.step(batch, self.stage.dropout_rate)["loss"])


def measure_stage(
    config: ml_collections.ConfigDict, index: int, steps: int
) -> dict[str, float]:
    """Measures a stage of progressive learning.

    Args:
        index: of the stage, from 0.
        steps: to time, after a few untimed ones.

    Returns:
        The stage's 'image_size', 'batch_size' and 'steps'; images/s of the
        'pipeline' alone, of the training 'step' alone, on a batch that stays
        in memory, and of 'both'; the 'waiting_share' of both in [0, 1];
        'gflops' of the step alone, six per multiply-add of a forward pass; and
        'peak_memory' of this process in bytes.

    Raises:
        UserError: for several replicas.
    """
    plan, data = config_lib.run_plan(config), runs.Splits(config, _silent)
    engines.set_up(config)
    engine = engines.create(config, plan)
    if engine.replicas > 1:
        raise UserError(
            "The speed is measured on one device; add "
            "--hparam_str=runtime.strategy=gpu or cpu."
        )
    source, stage = data[config.train.split], plan.stages[index]
    dataset = stage_maker(
        config, plan, stage, source, engine.augments, _WARM_UP + steps
    )()

    def images_per_second(function):
        return steps * stage.batch_size / _repeat(function, steps)

    with faults.explained(source):
        read = iter(dataset).__next__
        _repeat(read, _WARM_UP)
        reading = images_per_second(read)
        # Its pipeline ends here, and reads ahead no longer.
        del read
        step = _Steps(engine, stage, iter(dataset.take(1).cache().repeat()))
        _repeat(step, _WARM_UP)
        training = images_per_second(step)
        step = _Steps(engine, stage, iter(dataset))
        _repeat(step, _WARM_UP)
        step.waited = 0.0
        both = images_per_second(step)
    cost = structure.count_model(config.model.to_dict(), stage.image_size)
    operations = 3 * 2 * cost.multiply_adds
    return {
        "image_size": stage.image_size,
        "batch_size": stage.batch_size,
        "steps": stage.last_step - stage.first_step,
        **{"pipeline": reading, "step": training, "both": both},
        "waiting_share": step.waited * both / (steps * stage.batch_size),
        "gflops": training * operations / 1e9,
        "peak_memory": peak_memory(),
    }


def measure_machine(size: int = 2048, repeats: int = 7) -> dict:
    """Returns versions, machine and the peak of its matrix products.

    Returns:
        `runs.environment`, and 'matmul_gflops': 1e9 floating-point operations
        a second, two for each multiply-add, of the fastest of some products of
        float32 matrices. NumPy's on CPU, which uses all cores whatever the
        threads of a run; elsewhere TensorFlow's.
    """
    ones = np.ones([size, size], np.float32)
    matrix = tf.constant(ones)

    def multiply():
        if kernels.runs_on_tensorflow_cpu():
            return ones @ ones
        return tf.reduce_sum(matrix @ matrix).numpy()

    _repeat(multiply, 1)
    fastest = min(_repeat(multiply, 1) for _ in range(repeats))
    return {
        **runs.environment(),
        "matmul_gflops": 2.0 * size**3 / fastest / 1e9,
    }


def measure_latency(
    config: ml_collections.ConfigDict, calls: int
) -> list[dict]:
    """Measures inference at `eval.isize`, with random weights.

    Args:
        calls: to time of each kind, after a few untimed ones.

    Returns:
        One dict each for 'form' Keras (`predict_on_batch` of normalized
        images) and SavedModel (uint8 images, so its preprocessing counts)
        and each 'batch_size': 'p50', 'p90' and 'p99' in milliseconds.
    """
    network = architecture.build_network(config.model.to_dict())
    names = registry.load_info(config.data.ds_name).class_names
    spec = ServingSpec.from_config(config, names)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        converters.write_saved_model(network, spec, path)
        loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    forms = {
        "Keras": (
            network.predict_on_batch,
            lambda images: images.astype(np.float32) / 128.0 - 1.0,
        ),
        "SavedModel": (
            lambda images: serve(images=images)["label"].numpy(),
            lambda images: tf.constant(images, tf.uint8),
        ),
    }
    results = []
    for form, (call, prepare) in forms.items():
        for size in BATCH_SIZES:
            shape = [size, config.eval.isize, config.eval.isize, 3]
            images = prepare(np.random.default_rng(0).integers(0, 256, shape))
            once = functools.partial(call, images)
            _repeat(once, _WARM_UP)
            times = [1e3 * _repeat(once, 1) for _ in range(calls)]
            results.append(
                {"form": form, "batch_size": size}
                | {
                    f"p{k}": float(np.percentile(times, k))
                    for k in (50, 90, 99)
                }
            )
    return results


_MEASUREMENTS = {
    "machine": lambda _: measure_machine(),
    "stage": measure_stage,
    "latency": measure_latency,
}


def _answer(name: str, arguments: list[str], config_text: str) -> dict:
    """Returns the result of a measurement, or a user's error."""
    config = ml_collections.ConfigDict(yaml.safe_load(config_text))
    try:
        found = map(json.loads, arguments)
        return {"result": _MEASUREMENTS[name](config, *found)}
    except UserError as error:
        return {"error": str(error)}


# --- Before a run ------------------------------------------------------------


def dry_run(
    config: ml_collections.ConfigDict, log: Callable[[str], None] = progress.say
) -> float:
    """Logs data, model, stages, and the measured time and memory of a run.

    Nothing is written. Missing data are downloaded or prepared. Returns the
    estimated seconds of the whole run.
    """
    start = time.perf_counter()
    plan, data = config_lib.run_plan(config), runs.Splits(config, log)
    engines.set_up(config)
    log(notices.describe_data(config, plan))
    engine = engines.create(config, plan)
    notices.announce(config, plan, engine, log)
    source, rates, started = data[config.train.split], [], None
    with faults.explained(source):
        for stage in plan.stages:
            make_dataset = stage_maker(
                config, plan, stage, source, engine.augments, 2 + _DRY_STEPS
            )
            step = _Steps(engine, stage, iter(engine.dataset(make_dataset)))
            step()
            started = started or time.perf_counter() - start
            step()
            rates.append(stage.batch_size / _seconds_per_call(step))
    evaluation = _evaluation_rate(config, data, engine)
    seconds = notices.measured_seconds(config, plan, rates, evaluation, started)
    shown = "; ".join(f"{rate:,.0f}" for rate in rates)
    log(f"Training, measured: {shown} images/s by stage.")
    log(f"Evaluation, measured: {evaluation:,.0f} images/s.")
    memory = f"Peak memory so far: {peak_memory() / 2**30:.1f} GiB"
    if not notices.lacks_accelerator():
        memory += f", of the device {_device_memory() / 2**30:.1f} GiB"
    log(f"{memory}.")
    text = formatting.format_seconds(seconds)
    log(f"Estimated time of the whole run: {text}.")
    log("Nothing was written. Rerun without --dry_run to train.")
    return seconds


def _seconds_per_call(function: Callable[[], None]) -> float:
    """Returns the mean time of a call, without the slowest one."""
    seconds: list[float] = []
    while len(seconds) < 3 or (
        len(seconds) < _DRY_STEPS and sum(seconds) < _DRY_SECONDS
    ):
        seconds.append(_repeat(function, 1))
    return statistics.mean(sorted(seconds)[:-1])


def _evaluation_rate(config, data, engine) -> float:
    """Returns images/s of the evaluation, its pipeline included."""
    source = data[config.eval.val_split or config.eval.split]
    batches = pipeline.evaluation_dataset(source, config).as_numpy_iterator()
    engine.logits(next(batches)[0])
    start, images = time.perf_counter(), 0
    for batch, _ in itertools.islice(batches, _DRY_STEPS):
        engine.logits(batch)
        images += len(batch)
    seconds = time.perf_counter() - start
    return images / seconds if images else float("inf")


def _device_memory() -> int:
    if keras.config.backend() == "jax":
        import jax

        found = jax.devices()[0].memory_stats() or {}
        return found.get("peak_bytes_in_use", 0)
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], sys.argv[2:], sys.stdin.read())))
