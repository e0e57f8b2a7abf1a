r"""Train every arm of a study with every seed, and report on them.

    efficientnetv2 study --study=regularization --seeds=3 \
        --output_dir=runs/ablation
    efficientnetv2 study --report_only --output_dir=runs/ablation

Each run is a process of its own. Rerun the command to resume a study.
`--shard=1/4` takes every fourth run, so that machines which share the folder
divide a study.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.errors import UserError


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "study",
        None,
        "Name in hparams/studies/, or a YAML file of that form.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dataset", None, "Dataset; default: the study's.", flag_values=values
    )
    flags.DEFINE_integer(
        "seeds",
        3,
        "Number of seeds per arm: 0, 1, ...; default: 3.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_dir",
        "results/ablation",
        "Folder of all studies; default: results/ablation.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "arms",
        None,
        "Only these arms, such as plain,everything_on.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "shard",
        "1/1",
        "2/4: the second of four parts of the runs.",
        flag_values=values,
    )
    cli.define_data_dir(values)
    flags.DEFINE_boolean(
        "report_only",
        False,
        "Train nothing; write the report of --output_dir.",
        flag_values=values,
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
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

    study = definition.load(given.study, given.dataset)
    configs = definition.resolve(study, given.data_dir)
    tasks = ablation.plan_tasks(
        study, given.seeds, given.arms, ablation.parse_shard(given.shard)
    )
    children = ablation.Children()
    driver = ablation.Driver(
        study,
        configs,
        records.Folder(output / study.name),
        given.data_dir,
        children.run,
    )
    with children.receiving():
        return driver.execute(tasks, given.seeds)
