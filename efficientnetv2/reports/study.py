"""The report of all studies in a folder, from their JSON files alone.

`efficientnetv2 study --report_only` writes REPORT.md, report.html, which needs
no other file, and the plots. The same JSON files give the same tables, byte for
byte.
"""

import collections
import os
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence

from efficientnetv2 import declarative, files, progress
from efficientnetv2.reports import plots
from efficientnetv2.reports.document import (
    Block,
    Code,
    Figures,
    Heading,
    Paragraph,
    Table,
    to_html,
    to_markdown,
)
from efficientnetv2.study import intervals, records
from efficientnetv2.study.analysis import Analysis, Verdict, points
from efficientnetv2.study.intervals import Interval
from efficientnetv2.study.records import Folder, StudyError

MARKDOWN, PAGE = "REPORT.md", "report.html"
_TITLE = "Ablation studies"
_READINGS = {
    intervals.YES: "higher",
    intervals.NO: "lower",
    intervals.NOISE: "within noise",
    intervals.UNDECIDED: "one seed",
}


def load(output: str | os.PathLike) -> list[Analysis]:
    """Reads the studies of a folder, by name.

    Raises:
        StudyError: if there is none, or results do not belong together.
    """
    studies = []
    paths = sorted(pathlib.Path(output).glob(f"*/{records.DEFINITION}"))
    for path in paths:
        folder = Folder(path.parent)
        study, seeds = records.definition_of(folder)
        names = {arm.name for arm in study.arms}
        results = records.read_results(folder)
        records.check_agreement(results)
        for arm, _ in results:
            if arm not in names:
                raise StudyError(
                    f"{path} has no arm {arm!r}, of which there are results."
                )
        if results:
            studies.append(Analysis(study, seeds, results))
    if not studies:
        raise StudyError(
            f"There are no results of a study in {output}. Run "
            "efficientnetv2 study --study=regularization "
            f"--output_dir={output} first."
        )
    return studies


def build(
    output: str | os.PathLike, log: Callable[[str], None] = progress.say
) -> None:
    """Writes the report of all studies of a folder.

    Raises:
        StudyError: see `load`.
    """
    output = pathlib.Path(output)
    studies = load(output)
    blocks = [
        Heading(1, _TITLE),
        Paragraph(
            "Every number here is computed from the JSON files in the folders "
            "results/ of the studies, one per run, by `efficientnetv2 study "
            "--report_only`. Top-1 is measured on all test images. A seed "
            "fixes the initial weights, the order of the images and their "
            "augmentation, and all arms share it. Differences and ratios are "
            "paired by seed, with 95% intervals of Student's t."
        ),
        Heading(2, "What was tested"),
        _summary(studies),
    ]
    for study in studies:
        pictures = plots.draw_all(study, output / study.study.name / "plots")
        blocks += study_blocks(study, pictures, output)
    files.write_text(output / MARKDOWN, to_markdown(blocks, output))
    files.write_text(output / PAGE, to_html(blocks, _TITLE))
    log(f"Report: {output / MARKDOWN} and {output / PAGE}")


def _verdicts(analysis: Analysis) -> list[Verdict]:
    return [analysis.judge(each) for each in analysis.study.hypotheses]


def _summary(studies: Sequence[Analysis]) -> Table:
    rows = [
        (each.claim, each.verdict, analysis.study.title)
        for analysis in studies
        for each in _verdicts(analysis)
    ]
    return Table(("claim", "the data", "study"), rows, text_columns=3)


def study_blocks(
    analysis: Analysis,
    pictures: Sequence[tuple[pathlib.Path, str]],
    output: pathlib.Path,
) -> list[Block]:
    """Returns what the report says of a study: a new table goes in here.

    Args:
        analysis: the results of the study.
        pictures: of `plots.draw_all`.
        output: the folder of all studies.
    """
    study = analysis.study
    blocks = [Heading(2, study.title)]
    if study.description:
        blocks.append(Paragraph(study.description))
    blocks.append(Paragraph(_conditions(analysis)))
    if analysis.missing():
        blocks.append(
            Paragraph(
                f"{analysis.missing()} of the runs have no result yet.",
                "Incomplete.",
            )
        )
    for verdict in _verdicts(analysis):
        label = verdict.verdict[0].upper() + verdict.verdict[1:]
        text = " ".join([f"{label}.", *verdict.reasons])
        blocks.append(Paragraph(text, verdict.claim))
    blocks += [Heading(3, "Accuracy and time"), _main_table(analysis)]
    blocks += [Paragraph(text) for text in _notes(analysis)]
    blocks.append(Figures(pictures))
    if analysis.models_differ() or analysis.has_inference():
        blocks += [Heading(3, "Cost"), _cost_table(analysis)]
        blocks.append(Paragraph(_cost_note(analysis)))
    blocks += [Heading(3, "Every run"), _runs_table(analysis)]
    blocks += [Heading(3, "How it was made"), *_provenance(analysis, output)]
    return blocks


def _conditions(analysis: Analysis) -> str:
    """Returns what all runs share."""
    some = next(iter(analysis.results.values()))
    epochs = sorted(
        {r["total_steps"] / r["steps_per_epoch"] for r in _all(analysis)}
    )
    text = (
        f"Dataset {some['dataset']}: {some['num_images']:,} training images, "
        f"{some['test']['images']:,} test images. "
        f"{' or '.join(f'{each:g}' for each in epochs)} epochs a run. Base: "
        f"'{analysis.title(analysis.study.base)}'."
    )
    if some["best"]:
        text += (
            f" The tested weights are those of the best evaluation on "
            f"{some['best']['images']:,} validation images, which are neither "
            "training nor test images."
        )
    return text


def _all(analysis: Analysis) -> list[Mapping]:
    return list(analysis.results.values())


def _number(value: float, digits: int) -> str:
    """Returns a number, '-' for nan."""
    return "-" if value != value else f"{value:.{digits}f}"


def _mean_and_sd(values: Sequence[float], digits: int = 0) -> str:
    """Returns '1,234 (sd 5)', without brackets for one value."""
    found = intervals.interval(values)
    text = f"{found.mean:,.{digits}f}"
    return text + (f" (sd {found.sd:,.{digits}f})" if found.n > 1 else "")


def _main_table(analysis: Analysis) -> Table:
    base = analysis.study.base
    rows = []
    for arm in analysis.arms:
        top1 = intervals.interval(list(analysis.top1(arm).values()))
        seconds = list(analysis.train_seconds(arm).values())
        difference, reading, ratio = "-", "base", "-"
        if arm != base and base in analysis.arms:
            found = analysis.difference(arm, base)
            difference = points(found) if found.n else "-"
            reading = _READINGS[found.is_above()]
            ratio = _ratio(analysis.time_ratio(arm, base))
        elif arm != base:
            reading = "-"
        rows.append(
            (
                analysis.title(arm),
                f"{top1.mean:.2f}",
                _number(top1.sd, 2),
                str(top1.n),
                difference,
                reading,
                f"{intervals.interval(seconds).mean:,.0f}",
                ratio,
            )
        )
    return Table(
        (
            "arm",
            "top-1 (%)",
            "sd",
            "seeds",
            "minus base (points) [95%]",
            "reading",
            "training (s)",
            "time / base",
        ),
        rows,
    )


def _ratio(value: Interval) -> str:
    return f"{value.mean:.3f}" if value.n else "-"


def _notes(analysis: Analysis) -> list[str]:
    """Returns how to read the main table."""
    compared = len(analysis.arms) - (analysis.study.base in analysis.arms)
    notes = [
        "Within noise: the interval contains 0, so that these seeds do not "
        "show a difference, nor that there is none. Each interval is a 95% "
        f"interval by itself: if none of the {compared} differences were "
        f"real, about {0.05 * compared:.2g} of the intervals would still "
        "leave out 0. Training time is without evaluation.",
    ]
    if len({_machine(result) for result in _all(analysis)}) > 1:
        notes.append(
            "The runs were made on several machines. Times are compared only "
            "between runs of the same seed and machine; the column of seconds "
            "is the mean over all."
        )
    return notes


def _cost_table(analysis: Analysis) -> Table:
    header = ["arm", "parameters", "multiply-adds", "training (images/s)"]
    if analysis.has_inference():
        header.append("inference (images/s)")
    rows = []
    for arm in analysis.arms:
        model = next(iter(analysis.of_arm(arm).values()))["model"]
        row = [
            analysis.title(arm),
            f"{model['parameters']:,}",
            f"{model['multiply_adds']:,}",
            _mean_and_sd(
                list(
                    analysis.values(
                        arm, lambda r: r["train_images_per_second"]
                    ).values()
                )
            ),
        ]
        if analysis.has_inference():
            row.append(
                _mean_and_sd(
                    list(
                        analysis.values(
                            arm, lambda r: r["inference"]["images_per_second"]
                        ).values()
                    )
                )
            )
        rows.append(row)
    return Table(header, rows)


def _cost_note(analysis: Analysis) -> str:
    some = next(iter(analysis.results.values()))
    text = (
        "Parameters include the moving statistics of batch normalization; "
        f"multiply-adds are of one image of {some['model']['image_size']} "
        "pixels. Training images/s are those of the whole run, over all its "
        "image sizes."
    )
    if analysis.has_inference():
        found = some["inference"]
        text += (
            f" Inference: batches of {found['batch_size']} images of "
            f"{found['image_size']} pixels, the median of {found['rounds']} "
            f"rounds of {found['batches_per_round']} batches in each run."
        )
    return text


def _runs_table(analysis: Analysis) -> Table:
    rows = []
    for arm in analysis.arms:
        for seed, result in analysis.of_arm(arm).items():
            times, curve = result["times"], result["curve"]
            rows.append(
                (
                    analysis.title(arm),
                    str(seed),
                    f"{100 * result['test']['top1']:.2f}",
                    f"{100 * result['test']['top5']:.2f}",
                    f"{100 * curve[-1]['top1']:.2f}" if curve else "-",
                    f"{times['train_seconds']:,.1f}",
                    f"{times['evaluation_seconds']:,.1f}",
                    f"{times['wall_seconds']:,.1f}",
                )
            )
    return Table(
        (
            "arm",
            "seed",
            "test top-1 (%)",
            "test top-5 (%)",
            "last validation top-1 (%)",
            "training (s)",
            "evaluation (s)",
            "whole process (s)",
        ),
        rows,
    )


def _machine(result: Mapping) -> str:
    versions = result["environment"]
    others = "".join(f", {d}" for d in versions["devices"] if d != "CPU")
    return (
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
        f"{others}; Python {versions['python']}, "
        f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}, "
        f"numpy {versions['numpy']}"
    )


def _command(analysis: Analysis, output: pathlib.Path, seeds: int) -> str:
    """Returns the command that runs a study."""
    study = analysis.study
    name = study.name
    if name not in declarative.names("studies"):
        # The definition of a user's study lies beside its results.
        name = str(Folder(output / name).definition)
    return shlex.join(
        [
            *("efficientnetv2", "study"),
            f"--study={name}",
            f"--dataset={study.dataset}",
            f"--seeds={seeds}",
            f"--output_dir={output}",
        ]
    )


def _provenance(analysis: Analysis, output: pathlib.Path) -> list:
    study = analysis.study
    seeds = 1 + max(seed for _, seed in analysis.results)
    machines = collections.Counter(map(_machine, _all(analysis)))
    some = next(iter(analysis.results.values()))
    blocks = [Code(_command(analysis, output, seeds))]
    for machine, count in sorted(machines.items()):
        runs = f"{count} run{'s' * (count != 1)}"
        blocks.append(Paragraph(f"{runs} on {machine}."))
    blocks.append(
        Paragraph(
            f"Code: SHA-256 {records.digest(some['code'])} over "
            f"{len(some['code'])} files, which each result lists. One run by "
            "itself:"
        )
    )
    blocks.append(Code(some["command"]))
    blocks.append(
        Paragraph(
            f"The recipe is {study.recipe or 'that of the dataset'}. All arms "
            f"override {study.overrides or 'nothing'}; each besides:"
        )
    )
    rows = [(arm.title, arm.overrides or "nothing") for arm in study.arms]
    blocks.append(Table(("arm", "overrides"), rows, text_columns=2))
    return blocks
