"""Which part of its time the recipe `fashion_mnist` waits for data.

    python benchmarks/waiting.py --seconds=20

Each stage trains for a share of the seconds in a process of its own, and counts
by the time that it takes in a whole run.
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# About this many steps of the recipe take a second.
STEPS_PER_SECOND = 5


def main() -> None:
    options = timing.parse(argparse.ArgumentParser(description=__doc__))
    from efficientnetv2 import config as config_lib
    from efficientnetv2.study import benchmark

    config = config_lib.load("fashion_mnist")
    steps = max(1, round(options.seconds * STEPS_PER_SECOND))
    stages = benchmark.measure_stages(config, steps)
    timing.show(benchmark.waiting_share(stages))


if __name__ == "__main__":
    main()
