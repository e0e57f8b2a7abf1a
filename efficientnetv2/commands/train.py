r"""Train and evaluate a model; write the report and a SavedModel.

    efficientnetv2 train --dataset=fashion_mnist --model_dir=runs/fashion_mnist
    efficientnetv2 train --dataset=photos --model_dir=runs/photos \
        --model_name=efficientnetv2-s --hparam_str=train.ft_init_ckpt=imagenet

Rerun the command to resume.
"""

from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.commands import running

RARE = (
    *running.SWITCHES,
    "adaptive_regularization",
    "mode",
)


def define_flags(values: flags.FlagValues) -> None:
    cli.define_run_flags(values)
    running.define_model_dir(values)
    running.define_short_flags(values)
    running.define_strategy(values)
    running.define_backend(values)
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Train nothing; estimate time and memory. Prints data, model and "
        "stages, times a few steps of each, and writes nothing.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "mode",
        "train_and_eval",
        running.TRAINING_MODES,
        "train_and_test leaves out report and SavedModel, train the final "
        "evaluation as well.",
        flag_values=values,
    )
    running.define_switches(values)


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    cli.no_words(words)
    running.train(given)
