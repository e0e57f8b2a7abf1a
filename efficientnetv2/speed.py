"""How fast training and inference are, and what training waits for.

`efficientnetv2 benchmark`, studies and benchmarks/run.py measure by it. Each
measurement is a process of its own (`apart`), so that the peak of memory is its
own, and the threads are those that training or serving would have.
"""

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ml_collections
import yaml

from efficientnetv2 import config as config_lib
from efficientnetv2 import formatting, progressive
from efficientnetv2.data import faults, loading, registry
from efficientnetv2.errors import UserError
from efficientnetv2.models import structure

BATCH_SIZES = (1, 8, 32)
"""Of which the latency is measured."""
_WARM_UP = 3
# What `efficientnetv2 benchmark --model_dir` leaves in the folder of a run.
INFERENCE = "inference.json"


def _silent(_: str) -> None:
    """Logs nothing."""


# --- A run as a whole --------------------------------------------------------


def measure(
    config: ml_collections.ConfigDict, steps: int, calls: int, log=print
) -> dict:
    """Measures everything that `efficientnetv2 benchmark` shows.

    Args:
        config: of the run.
        steps, calls: of training and of inference, in each measurement.
        log: prints one line.

    Raises:
        UserError: for data that cannot be obtained.
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
    """Returns which part of its time a whole run waits for data, in [0, 1].

    Args:
        stages: of `measure_stages`; each counts by its time in the run.
    """
    seconds = [
        stage["steps"] * stage["batch_size"] / stage["both"] for stage in stages
    ]
    waiting = sum(
        stage["waiting_share"] * each
        for stage, each in zip(stages, seconds, strict=True)
    )
    return waiting / sum(seconds)


def apart(name: str, config: ml_collections.ConfigDict, *arguments):
    """Returns what a measurement of `_MEASUREMENTS` gives in a new process.

    Args:
        name: of the measurement.
        config: of the run.
        *arguments: further ones, as JSON has them.

    Raises:
        UserError: if it fails.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "efficientnetv2.speed", name),
            *map(json.dumps, arguments),
        ],
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
    """Returns the time from starting the program to its first step's end.

    The main program runs as a process of its own, with all its imports, its
    data and its building, and is ended when it shows its first loss.

    Args:
        config: of the run; its data must be prepared.

    Raises:
        UserError: if the program ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(config_lib.to_yaml(config))
        return seconds_to_line(
            [
                *(sys.executable, "-m", "efficientnetv2.main"),
                *("--mode=train", f"--hparam_str={path}"),
                f"--model_dir={folder}/run",
            ],
            " loss ",
        )


def seconds_to_line(command: Sequence[str], text: str) -> float:
    """Returns the time from starting a program to a line on its stdout.

    Args:
        command: the program, which is ended then.
        text: that the line contains.

    Raises:
        UserError: if the program ends without such a line.
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
    """Returns the most memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def stage_maker(
    config: ml_collections.ConfigDict,
    plan: progressive.RunPlan,
    stage: progressive.Stage,
    source: loading.Source,
    on_device: bool,
    steps: int,
) -> Callable[..., Iterable]:
    """Returns what makes the batches of one stage, as `Engine.dataset` asks.

    Args:
        config, plan: of the run.
        stage: of the plan.
        source: of the images.
        on_device: see `pipeline.training_dataset`.
        steps: that are used, of twice as many: a pipeline that reads no
            further is faster.
    """
    from efficientnetv2.data import pipeline

    return functools.partial(
        pipeline.training_dataset,
        source,
        config,
        plan.only(stage, 2 * steps),
        on_device=on_device,
    )


def measure_stage(
    config: ml_collections.ConfigDict, index: int, steps: int
) -> dict[str, float]:
    """Measures a stage of progressive learning.

    Args:
        config: of the run.
        index: of the stage, from 0.
        steps: that are timed, after a few that are not.

    Returns:
        The stage's 'image_size', 'batch_size' and 'steps'; images/s of the
        'pipeline' alone, of the training 'step' alone, on a batch that stays
        in memory, and of 'both'; the 'waiting_share' of both in [0, 1];
        'gflops' of the step alone, six per multiply-add of a forward pass; and
        'peak_memory' of this process in bytes.

    Raises:
        UserError: for data that cannot be obtained, or several replicas.
    """
    from efficientnetv2 import engines, runs

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
    cost = structure.count_model(config.model.to_dict(), stage.image_size)
    operations = 3 * 2 * cost.multiply_adds
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
    import numpy as np
    import tensorflow as tf

    from efficientnetv2 import runs
    from efficientnetv2.models import kernels

    if kernels.runs_on_tensorflow_cpu():
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
    import numpy as np
    import tensorflow as tf

    from efficientnetv2.models import architecture
    from efficientnetv2.serving import converters
    from efficientnetv2.serving.spec import ServingSpec

    network = architecture.build_network(config.model.to_dict())
    names = registry.load_info(config.data.ds_name).class_names
    spec = ServingSpec.from_config(config, names)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        converters.write_saved_model(network, spec, path)
        loaded = tf.saved_model.load(path)
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
    import numpy as np

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


def _answer(name: str, arguments: list[str], config_text: str) -> dict:
    """Returns the result of a measurement, or the error of a user."""
    config = ml_collections.ConfigDict(yaml.safe_load(config_text))
    try:
        found = map(json.loads, arguments)
        return {"result": _MEASUREMENTS[name](config, *found)}
    except UserError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(json.dumps(_answer(sys.argv[1], sys.argv[2:], sys.stdin.read())))
