"""Seconds from the start of our program to the end of its first step.

    python benchmarks/first_step.py --size=32 --batch=128

EfficientNetV2-B0 on Fashion-MNIST by `python -m efficientnetv2.main`: all that
it does before training counts.
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    options = timing.parse(argparse.ArgumentParser(description=__doc__))
    from efficientnetv2 import config as config_lib
    from efficientnetv2.study import benchmark

    config = config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-b0",
        hparam_str=f"train.isize={options.size},eval.isize={options.size},"
        f"data.ibase={options.size},train.batch_size={options.batch},"
        f"model.num_classes={timing.CLASSES}",
    )
    timing.show(benchmark.first_step_seconds(config))


if __name__ == "__main__":
    main()
