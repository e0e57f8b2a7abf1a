"""The commands that measure: studies, and speed."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from absl import flags

from efficientnetv2 import backend, cli, files, formatting
from efficientnetv2.cli import Flag
from efficientnetv2.commands.run import config_of_run, load_config
from efficientnetv2.errors import UserError

_PARTS = ("measure", "tune", "train", "report")


@cli.command(
    Flag("study", "Name in hparams/studies/, or a YAML file of that form."),
    Flag("dataset", "Dataset; default: the study's."),
    Flag(
        "output_dir",
        "Folder of all studies; default: results/study.",
        default="results/study",
    ),
    Flag(
        "only",
        "measure, tune, train or report; default: all four, one by one.",
        choices=_PARTS,
    ),
    Flag("arm", "Train only this arm, with --seed, and compare the result."),
    "seed data_dir",
)
def study(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""Train every arm of a study with every seed, and report on them.

        efficientnetv2 study --study=regularization --output_dir=runs/study
        efficientnetv2 study --only=report --output_dir=runs/study
        efficientnetv2 study --study=regularization --arm=fixed --seed=7

    It measures the time of a step at each image size, with nothing else on the
    machine; tunes each arm's strength of regularization on validation images;
    trains the runs; and reports. Rerun the command to resume. Processes and
    machines that share the folder divide the runs among themselves.
    """
    cli.no_words(words)
    if given.only != "report":
        if not given.study:
            raise UserError("Set --study, for example --study=regularization.")
        with backend.importing_tensorflow():
            from efficientnetv2.study import definition, work

        at_work = work.Work(
            definition.load_study(given.study, given.dataset),
            given.output_dir,
            given.data_dir,
        )
        if given.arm:
            _rerun(at_work, given.arm, given.seed or 0)
            return
        at_work.claim()
        for part in _PARTS[:-1]:
            if given.only in (None, part):
                getattr(at_work, part)()
    if given.only in (None, "report"):
        # Only a report needs matplotlib.
        from efficientnetv2.reports import study as report

        report.build(given.output_dir)


def _rerun(at_work, arm: str, seed: int) -> None:
    """Trains one arm, and prints whether it lands where the study says."""
    from efficientnetv2.study import analysis

    at_work.study.arm(arm)
    at_work.check_options()
    found = analysis.load_results(at_work.folder)
    known = found.top1(arm, max(at_work.study.budgets))
    top1 = 100 * at_work.rerun(arm, seed)["top1"]
    text = f"{arm}, seed {seed}: test top-1 {top1:.2f}%."
    if known.n < 2:
        print(f"{text} {at_work.folder} has no interval to compare it with.")
        return
    low, high = known.of_one_more()
    where = "inside" if low <= top1 <= high else "OUTSIDE"
    print(
        f"{text} Published: {known.mean:.2f}% over {known.n} seeds; 95% of "
        f"single runs lie in [{low:.2f}%, {high:.2f}%]. This one lies {where}."
    )


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

    Each measurement runs in a process of its own. For a finished run, images/s
    of inference also go to inference.json in its folder.
    """
    cli.no_words(words)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from efficientnetv2 import evaluation, speed

    if given.model_dir:
        result = evaluation.measure_inference(
            config_of_run(given), given.model_dir, given.inference_batch_size
        )
        path = pathlib.Path(given.model_dir) / speed.INFERENCE
        files.write_json(path, result)
        text = (
            "{images_per_second:,.0f} images/s in batches of {batch_size} at "
            "{image_size} pixels"
        )
        print(text.format(**result))
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
    form = (
        "{image_size} {batch_size} {pipeline:,.0f} {step:,.0f} {both:,.0f} "
        "{waiting_share:.1%} {gflops:.1f} {of_peak:.0%} {memory:,.0f}"
    )
    for number, stage in enumerate(result["stages"], 1):
        stage = {**stage, "of_peak": stage["gflops"] / peak}
        stage["memory"] = stage["peak_memory"] / 2**20
        rows.append((str(number), *form.format(**stage).split()))
    calls = [("inference", "batch size", "p50 ms", "p90 ms", "p99 ms")]
    for each in result["latency"]:
        times = "{p50:.2f} {p90:.2f} {p99:.2f}".format(**each)
        calls.append((each["form"], str(each["batch_size"]), *times.split()))
    machine, seconds = result["machine"], result["first_step_seconds"]
    return (
        f"{result['model_name']}, {machine['cpu_count']} CPU cores, devices "
        f"{', '.join(machine['devices'])}\n"
        f"Matrix products of float32: {peak:.0f} GFLOP/s\n\n"
        f"{formatting.align_table(rows)}\n\n"
        f"A whole run spends {result['waiting_share']:.1%} of its time waiting "
        f"for data.\nThe first step ends {seconds:.1f} s after the start of "
        f"the program.\n\n{formatting.align_table(calls, left=[0])}"
    )
