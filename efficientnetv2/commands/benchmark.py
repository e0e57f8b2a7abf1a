r"""Measure the speed of training and inference, and the memory they take.

    efficientnetv2 benchmark --dataset=fashion_mnist
    efficientnetv2 benchmark --model_name=efficientnetv2-b0 \
        --hparam_str=train.isize=64,eval.isize=64 --json=speed.json
"""

import os
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli, files
from efficientnetv2.commands import running


def define_flags(values: flags.FlagValues) -> None:
    cli.define_run_flags(values)
    flags.DEFINE_integer(
        "steps",
        30,
        "Training steps of each measurement; default: 30.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "calls",
        200,
        "Inference calls of each measurement; default: 200.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "json", None, "File to write the figures to.", flag_values=values
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    cli.no_words(words)
    config = running.load_config(given)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from efficientnetv2.study import benchmark

    result = benchmark.measure(config, given.steps, given.calls)
    print(benchmark.report(result))
    if given.json:
        files.write_json(given.json, result)
