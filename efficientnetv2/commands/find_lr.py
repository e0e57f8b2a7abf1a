"""Find a learning rate by a few training steps at rising rates.

    efficientnetv2 find_lr --dataset=photos
    efficientnetv2 find_lr --dataset=fashion_mnist --steps=200

Prints the rate at which the loss falls fastest, for --lr, and draws the loss
over the rate. Trains nothing that is kept.
"""

from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli, quiet
from efficientnetv2.commands import running


def define_flags(values: flags.FlagValues) -> None:
    cli.define_run_flags(values)
    flags.DEFINE_integer(
        "steps",
        100,
        "Training steps, at most.",
        lower_bound=20,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        "learning_rate.png",
        "File of the plot.",
        flag_values=values,
    )
    running.define_strategy(values)
    running.define_backend(values)


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    cli.no_words(words)
    config = running.load_config(given)
    with quiet.importing_tensorflow(given.backend):
        from efficientnetv2 import lr_finder
    result = lr_finder.find(config, given.steps)
    lr_finder.draw(result, given.output)
    print(
        f"The loss falls fastest at --lr={result.suggestion:.2g}, and "
        f"{len(result.losses):,} of {given.steps:,} steps passed before it "
        f"diverged. Plot: {given.output}"
        if len(result.losses) < given.steps
        else f"The loss falls fastest at --lr={result.suggestion:.2g}. Plot: "
        f"{given.output}"
    )
