r"""Train, evaluate and export EfficientNet models.

    python -m efficientnetv2.main --dataset=fashion_mnist \
        --model_dir=runs/fashion_mnist

Rerun the command to resume. `efficientnetv2 train`, `eval`, `report` and
`export` do the same with the flags of one mode each.
"""

import sys
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.commands import running, train
from efficientnetv2.errors import UserError
from efficientnetv2.serving import formats

MODES = (*running.TRAINING_MODES, "eval", "report", "export")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of all modes."""
    train.define_flags(values)
    running.define_checkpoint(values)
    running.define_export(values)
    running.define_weights(values)
    flags.DEFINE_enum(
        "mode",
        "train_and_eval",
        MODES,
        f"One of {', '.join(MODES)}.",
        flag_values=values,
        allow_override=True,
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Runs a mode."""
    cli.no_words(words)
    if given.dry_run and given.mode not in running.TRAINING_MODES:
        raise UserError("--dry_run is for training.")
    if given.weights:
        if given.mode != "eval":
            raise UserError("--weights is for --mode=eval.")
        running.evaluate_weights(given)
        return
    if not given.model_dir and not given.dry_run:
        raise UserError("--model_dir is missing, such as runs/fashion_mnist.")
    if given.mode == "export":
        formats.check(given.formats or formats.DEFAULT)
        running.backend_for(given, given.mode)
    elif given.formats is not None:
        raise UserError(
            "--formats is for --mode=export; training ends with a SavedModel."
        )
    if given.mode in running.TRAINING_MODES:
        running.train(given)
    else:
        config = running.config_of_run(given, given.mode == "eval")
        running.execute(config, given, given.mode)


if __name__ == "__main__":
    cli.start(sys.modules[__name__], "python -m efficientnetv2.main")
