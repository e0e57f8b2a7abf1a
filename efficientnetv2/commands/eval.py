"""Evaluate a run on every image of its test split, or of other images.

    efficientnetv2 eval runs/fashion_mnist
    efficientnetv2 eval runs/fashion_mnist --hparam_str=eval.split=minival

The classes of another --dataset are found among the run's by their names.
"""

from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.commands import running


def define_flags(values: flags.FlagValues) -> None:
    running.define_model_dir(values)
    running.define_checkpoint(values)
    flags.DEFINE_string(
        "dataset", None, "Other images; default: the run's.", flag_values=values
    )
    cli.define_overrides(values)
    cli.define_data_dir(values)
    running.define_strategy(values)
    running.define_backend(values)


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    running.take_model_dir(given, words)
    config = running.config_of_run(given, other_images=True)
    running.execute(config, given, "eval")
