"""Write a run's model for other programs, and compare it with Keras.

    efficientnetv2 export runs/fashion_mnist --formats=keras,litert,onnx

What differs too much from Keras is not written, and the exit status is 1.
"""

from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.commands import running
from efficientnetv2.serving import formats

RARE = ("allow_disagreement",)


def define_flags(values: flags.FlagValues) -> None:
    running.define_model_dir(values)
    running.define_checkpoint(values)
    running.define_export(values)
    cli.define_data_dir(values)


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    running.take_model_dir(given, words)
    formats.check(given.formats or formats.DEFAULT)
    running.execute(running.config_of_run(given), given, "export")
