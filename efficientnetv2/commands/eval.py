r"""Evaluate a run on every image of its test split, or of other images.

    efficientnetv2 eval runs/fashion_mnist
    efficientnetv2 eval runs/fashion_mnist --hparam_str=eval.split=minival
    efficientnetv2 eval --model_name=efficientnetv2-s --weights=imagenet \
        --dataset=photos

The classes of another --dataset are found among the model's by their names.
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
    flags.DEFINE_string(
        "model_name",
        None,
        "With --weights: a name of hparams/models/, or a YAML file.",
        flag_values=values,
    )
    running.define_weights(values)
    cli.define_overrides(values)
    cli.define_data_dir(values)
    running.define_strategy(values)
    running.define_backend(values)


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    if given.weights:
        cli.no_words(words)
        running.evaluate_weights(given)
        return
    running.take_model_dir(given, words)
    config = running.config_of_run(given, other_images=True)
    running.execute(config, given, "eval")
