"""Evaluate a run and write its report, RUN/report.html, anew.

    efficientnetv2 report runs/fashion_mnist

`efficientnetv2 study --report_only` writes the report of studies.
"""

from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.commands import running


def define_flags(values: flags.FlagValues) -> None:
    running.define_model_dir(values)
    running.define_checkpoint(values)
    cli.define_overrides(values)
    cli.define_data_dir(values)
    running.define_backend(values)


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    running.take_model_dir(given, words)
    running.execute(running.config_of_run(given), given, "report")
