"""The commands that measure: studies, and speed."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from absl import flags

from efficientnetv2 import cli, files, formatting
from efficientnetv2.cli import Flag
from efficientnetv2.commands.run import config_of_run, load_config
from efficientnetv2.errors import UserError


@cli.command(
    Flag("study", "Name in hparams/studies/, or a YAML file of that form."),
    Flag("dataset", "Dataset; default: the study's."),
    Flag(
        "seeds",
        "Number of seeds per arm: 0, 1, ...; default: 3.",
        int,
        default=3,
        low=1,
    ),
    Flag(
        "output_dir",
        "Folder of all studies; default: results/ablation.",
        default="results/ablation",
    ),
    Flag("arms", "Only these arms, such as plain,everything_on.", list),
    Flag("shard", "2/4: the second of four parts of the runs.", default="1/1"),
    "data_dir",
    Flag(
        "report_only",
        "Train nothing; write the report of --output_dir.",
        bool,
        default=False,
    ),
)
def study(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""Train every arm of a study with every seed, and report on them.

        efficientnetv2 study --study=regularization --seeds=3 \
            --output_dir=runs/ablation
        efficientnetv2 study --report_only --output_dir=runs/ablation

    Each run is a process of its own. Rerun the command to resume a study.
    `--shard=1/4` takes every fourth run, so that machines which share the
    folder divide a study.
    """
    cli.no_words(words)
    output = pathlib.Path(given.output_dir)
    if given.report_only or _train(given, output):
        # Only a report needs matplotlib and scipy.
        from efficientnetv2.reports import study as report

        report.build(output)


def _train(given: flags.FlagValues, output: pathlib.Path) -> bool:
    """Trains what is missing; returns whether the study is complete."""
    if not given.study:
        raise UserError("--study is missing, such as regularization.")
    from efficientnetv2.study import ablation, definition, records

    arms = definition.load(given.study, given.dataset)
    configs = definition.resolve(arms, given.data_dir)
    tasks = ablation.plan_tasks(
        arms, given.seeds, given.arms, ablation.parse_shard(given.shard)
    )
    children = ablation.Children()
    driver = ablation.Driver(
        arms,
        configs,
        records.Folder(output / arms.name),
        given.data_dir,
        children.run,
    )
    with children.receiving():
        return driver.execute(tasks, given.seeds)


@cli.command(
    "dataset model_name recipe hparam_str data_dir",
    Flag(
        "steps",
        "Training steps of each measurement; default: 30.",
        int,
        default=30,
        low=1,
    ),
    Flag(
        "calls",
        "Inference calls of each measurement; default: 200.",
        int,
        default=200,
        low=1,
    ),
    Flag("json", "File to write the figures to."),
    Flag("model_dir", "Measure the inference of this finished run instead."),
    Flag(
        "inference_batch_size",
        "With --model_dir: images per batch; default: 100.",
        int,
        default=100,
        low=1,
    ),
    rare="inference_batch_size",
)
def benchmark(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""Measure the speed of training and inference, and the memory they take.

        efficientnetv2 benchmark --dataset=fashion_mnist
        efficientnetv2 benchmark --model_name=efficientnetv2-b0 \
            --hparam_str=train.isize=64,eval.isize=64 --json=speed.json
        efficientnetv2 benchmark --model_dir=runs/fashion_mnist

    Each measurement runs in a process of its own. Of a finished run, images/s
    of inference are also written to inference.json in its folder.
    """
    cli.no_words(words)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from efficientnetv2 import evaluation, speed

    if given.model_dir:
        result = evaluation.measure_inference(
            config_of_run(given), given.model_dir, given.inference_batch_size
        )
        files.write_json(
            pathlib.Path(given.model_dir) / speed.INFERENCE, result
        )
        print(
            f"{result['images_per_second']:,.0f} images/s in batches of "
            f"{result['batch_size']} at {result['image_size']} pixels"
        )
    else:
        config = load_config(given)
        result = speed.measure(config, given.steps, given.calls)
        print(format_speed(result))
    if given.json:
        files.write_json(given.json, result)


def format_speed(result: Mapping) -> str:
    """Returns the figures of `speed.measure` as text with tables."""
    peak = result["machine"]["matmul_gflops"]
    rows = [
        (
            *("stage", "image size", "batch size", "pipeline images/s"),
            *("step images/s", "both images/s", "waits", "GFLOP/s"),
            *("of peak", "memory MiB"),
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
                f"{stage['peak_memory'] / 2**20:,.0f}",
            )
        )
    calls = [("inference", "batch size", "p50 ms", "p90 ms", "p99 ms")]
    for each in result["latency"]:
        times = (f"{each[key]:.2f}" for key in ("p50", "p90", "p99"))
        calls.append((each["form"], str(each["batch_size"]), *times))
    return "\n".join(
        (
            f"{result['model_name']}, {result['machine']['cpu_count']} CPU "
            f"cores, devices {', '.join(result['machine']['devices'])}",
            f"Matrix products of float32: {peak:.0f} GFLOP/s",
            "",
            formatting.table(rows),
            "",
            f"A whole run waits for data {result['waiting_share']:.1%} of its "
            "time.\nThe first step ends "
            f"{result['first_step_seconds']:.1f} s after the start of the "
            "program.",
            "",
            formatting.table(calls, left=[0]),
        )
    )
