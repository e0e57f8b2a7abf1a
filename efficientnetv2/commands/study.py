"""The command that trains the arms of a study."""

import pathlib
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.cli import Flag
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
