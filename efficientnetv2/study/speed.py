"""Measurements of speed and memory, each meant for a process of its own.

`efficientnetv2.study.benchmark` starts these processes: the arguments are a
name and numbers, stdin is a configuration, and the last line of stdout is JSON.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable

import ml_collections
import numpy as np
import tensorflow as tf
import yaml

from efficientnetv2 import engines, runs
from efficientnetv2.data import faults, pipeline, registry
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture, convolutions, counting
from efficientnetv2.serving import export
from efficientnetv2.serving.spec import ServingSpec

BATCH_SIZES = (1, 8, 32)
"""Of which the latency is measured."""

_WARM_UP = 3


def _repeat(function: Callable[[], object], times: int) -> float:
    """Returns the seconds that so many calls take."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


def peak_memory() -> int:
    """Returns the most memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure_stage(
    config: ml_collections.ConfigDict, index: int, steps: int
) -> dict[str, float]:
    """Measures a stage of progressive learning.

    Args:
        config: of the run.
        index: of the stage, from 0.
        steps: that are timed, after a few that are not.

    Returns:
        The stage's 'image_size', 'batch_size' and 'steps'; images a second
        of the 'pipeline' alone, of the training 'step' alone, on a batch that
        stays in memory, and of 'both'; the 'waiting_share' of both in [0, 1];
        'gflops', what the step alone computes forward and backward in 1e9
        floating-point operations a second, at three times two for each
        multiply-add; and 'peak_memory' of this process in bytes.

    Raises:
        UserError: for data that cannot be had, or several replicas.
    """
    run = runs.make_run(config, "", lambda _: None)
    engines.set_up(config)
    engine = engines.create(config, run.plan, run.log)
    if engine.replicas > 1:
        raise UserError(
            "The speed is measured on one device; add "
            "--hparam_str=runtime.strategy=gpu or cpu."
        )
    source = faults.load_split(
        config, config.train.split, faults.LeftOut(run.log)
    )
    stage = run.stages[index]
    # Twice what is used: a pipeline that reads no further is faster.
    total = 2 * (_WARM_UP + steps)
    dataset = pipeline.training_dataset(
        source,
        config,
        dataclasses.replace(run.plan, total_steps=total),
        [dataclasses.replace(stage, first_step=0, last_step=total)],
        on_device=engine.augments,
    )

    def images_per_second(function):
        return steps * stage.batch_size / _repeat(function, steps)

    waited = [0.0]

    def train_on(batches):
        def step():
            start = time.perf_counter()
            batch = next(batches)
            waited[0] += time.perf_counter() - start
            # Reading the loss waits for the end of the step.
            return float(engine.step(batch, stage.dropout_rate)["loss"])

        return step

    result = {
        "image_size": stage.image_size,
        "batch_size": stage.batch_size,
        "steps": stage.last_step - stage.first_step,
    }
    with faults.named(source):
        read = iter(dataset).__next__
        _repeat(read, _WARM_UP)
        result["pipeline"] = images_per_second(read)
        # Its pipeline ends here, and reads ahead no longer.
        del read
        step = train_on(iter(dataset.take(1).cache().repeat()))
        _repeat(step, _WARM_UP)
        result["step"] = images_per_second(step)
        step = train_on(iter(dataset))
        _repeat(step, _WARM_UP)
        waited[0] = 0.0
        result["both"] = images_per_second(step)
    rows = counting.count_stages(config.model.to_dict(), stage.image_size)
    operations = 3 * 2 * counting.total(rows).multiply_adds
    return {
        **result,
        "waiting_share": waited[0]
        * result["both"]
        / (steps * stage.batch_size),
        "gflops": result["step"] * operations / 1e9,
        "peak_memory": peak_memory(),
    }


def measure_machine(size: int = 2048, repeats: int = 7) -> dict:
    """Returns versions, machine and the peak of its matrix products.

    Args:
        size: rows and columns of the float32 matrices.
        repeats: products, of which the fastest counts.

    Returns:
        `runs.environment`, and 'matmul_gflops': 1e9 floating-point operations
        a second, two for each multiply-add. NumPy's product on CPU, which
        uses all cores whatever the threads of a run; elsewhere TensorFlow's.
    """
    if convolutions.runs_on_tensorflow_cpu():
        matrix = np.ones([size, size], np.float32)

        def multiply():
            return matrix @ matrix
    else:
        matrix = tf.ones([size, size])

        def multiply():
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
        config: of the run.
        calls: of each kind that are timed, after a few that are not.

    Returns:
        One dict each for 'form' Keras (`predict_on_batch` of normalized
        images) and SavedModel (uint8 images, so its preprocessing counts)
        and each 'batch_size': 'p50', 'p90' and 'p99' in milliseconds.
    """
    network = architecture.build(config.model.to_dict())
    names = registry.load_info(config.data.ds_name).class_names
    spec = ServingSpec.from_config(config, names)
    with tempfile.TemporaryDirectory() as folder:
        path = export.export_saved_model(network, spec, f"{folder}/model")
        loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    forms = {
        "Keras": network.predict_on_batch,
        "SavedModel": lambda images: serve(images=images)["label"].numpy(),
    }
    results = []
    for form, call in forms.items():
        for batch_size in BATCH_SIZES:
            images = np.random.default_rng(0).integers(
                0, 256, [batch_size, config.eval.isize, config.eval.isize, 3]
            )
            if form == "Keras":
                images = images.astype(np.float32) / 128.0 - 1.0
            else:
                images = tf.constant(images, tf.uint8)
            results.append(
                {
                    "form": form,
                    "batch_size": batch_size,
                    **_percentiles(call, images, calls),
                }
            )
    return results


def _percentiles(call, images, calls: int) -> dict[str, float]:
    _repeat(lambda: call(images), _WARM_UP)
    times = [1e3 * _repeat(lambda: call(images), 1) for _ in range(calls)]
    return {
        f"p{percent}": float(np.percentile(times, percent))
        for percent in (50, 90, 99)
    }


_MEASUREMENTS = {
    "machine": lambda _: measure_machine(),
    "stage": measure_stage,
    "latency": measure_latency,
}


def _answer(name: str, numbers: list[str], config_text: str) -> dict:
    """Returns the result of a measurement, or the error of a user."""
    config = ml_collections.ConfigDict(yaml.safe_load(config_text))
    try:
        return {"result": _MEASUREMENTS[name](config, *map(int, numbers))}
    except UserError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], sys.argv[2:], sys.stdin.read())))
