"""How fast training and inference are, and what training waits for.

`efficientnetv2 benchmark` is the command.

Each stage, the latency and the machine's peak are measured one after the other
in processes of their own, so that the peak of memory is the stage's, and that
threads are those which training or serving would have.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import ml_collections

from efficientnetv2 import config as config_lib
from efficientnetv2 import formatting
from efficientnetv2.errors import UserError


def measure(
    config: ml_collections.ConfigDict, steps: int, calls: int, log=print
) -> dict:
    """Measures everything that `report` shows.

    Args:
        config: of the run.
        steps: training steps of each measurement.
        calls: inference calls of each measurement.
        log: prints one line.

    Returns:
        'machine', 'stages' and 'latency', see `speed`; 'waiting_share' and
        'first_step_seconds', see the functions; 'model_name'.

    Raises:
        UserError: for data that cannot be had.
    """
    machine = _apart("machine", config)
    stages = measure_stages(config, steps, log)
    log("Inference and the first step ...")
    return {
        "model_name": config.model.model_name,
        "machine": {**machine, "command": formatting.command_line()},
        "stages": stages,
        "waiting_share": waiting_share(stages),
        "latency": _apart("latency", config, calls),
        "first_step_seconds": first_step_seconds(config),
    }


def measure_stages(
    config: ml_collections.ConfigDict, steps: int, log=lambda _: None
) -> list[dict]:
    """Returns `speed.measure_stage` of each stage."""
    results = []
    for index in range(config.train.stages):
        log(f"Stage {index + 1} of {config.train.stages} ...")
        results.append(_apart("stage", config, index, steps))
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


def _apart(name: str, config: ml_collections.ConfigDict, *numbers: int):
    """Returns what a measurement of `speed` gives in a new process."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "efficientnetv2.study.speed", name),
            *map(str, numbers),
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


def seconds_to_line(
    command: Sequence[str], text: str, env: Mapping[str, str] | None = None
) -> float:
    """Returns the time from starting a program to a line on its stdout.

    Args:
        command: the program, which is ended then.
        text: that the line contains.
        env: environment; None: this process'.

    Raises:
        UserError: if the program ends without such a line.
    """
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
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


def report(result: Mapping) -> str:
    """Returns the figures of `measure` as text with aligned tables."""
    peak = result["machine"]["matmul_gflops"]
    rows = [
        (
            *("stage", "image size", "batch size", "pipeline images/s"),
            *("step images/s", "both images/s", "waiting", "GFLOP/s"),
            *("of peak", "memory"),
        )
    ]
    for number, stage in enumerate(result["stages"], 1):
        rows.append(
            (
                str(number),
                str(stage["image_size"]),
                str(stage["batch_size"]),
                *(f"{stage[key]:,.0f}" for key in ("pipeline", "step", "both")),
                f"{stage['waiting_share']:.1%}",
                f"{stage['gflops']:.1f}",
                f"{stage['gflops'] / peak:.0%}",
                f"{stage['peak_memory'] / 2**20:,.0f} MiB",
            )
        )
    calls = [("inference", "batch size", "p50 ms", "p90 ms", "p99 ms")]
    for each in result["latency"]:
        calls.append(
            (
                each["form"],
                str(each["batch_size"]),
                *(f"{each[key]:.2f}" for key in ("p50", "p90", "p99")),
            )
        )
    return "\n".join(
        (
            f"{result['model_name']}, {result['machine']['cpu_count']} CPU "
            f"cores, devices {', '.join(result['machine']['devices'])}; "
            f"matrix products of float32 at {peak:.0f} GFLOP/s",
            "",
            formatting.table(rows),
            "",
            f"A whole run waits for data {result['waiting_share']:.1%} of its "
            "time. The first step ends "
            f"{result['first_step_seconds']:.1f} s after the start of the "
            "program.",
            "",
            formatting.table(calls, left=[0]),
        )
    )


if __name__ == "__main__":
    from efficientnetv2 import cli
    from efficientnetv2.commands import benchmark as command

    cli.start(command, "python -m efficientnetv2.study.benchmark")
