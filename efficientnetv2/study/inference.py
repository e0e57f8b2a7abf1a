"""The speed of inference of a finished run's model.

    python -m efficientnetv2.study.inference --model_dir=runs/fashion_mnist

It leaves inference.json in the folder of the run.
"""

import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli, files
from efficientnetv2 import config as config_lib
from efficientnetv2.errors import UserError

RESULT = "inference.json"
_WARM_UP, _ROUNDS, _BATCHES = 5, 7, 20


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "model_dir", None, "Folder of a finished run.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size",
        100,
        "Images a batch.",
        lower_bound=1,
        flag_values=values,
    )


def measure(model_dir: str | os.PathLike, batch_size: int) -> dict:
    """Measures the best checkpoint's averaged weights on random images.

    Args:
        model_dir: of a run.
        batch_size: images a batch.

    Returns:
        'images_per_second', the median of several rounds after a warm-up,
        'lowest' and 'highest' of the rounds, and what was measured:
        'batch_size', 'image_size' in pixels, 'rounds', 'batches_per_round'.

    Raises:
        UserError: if there is no run.
    """
    import numpy as np

    from efficientnetv2 import checkpoints, engines
    from efficientnetv2.models import weights

    config = config_lib.load(saved=config_lib.read_saved(model_dir))
    engine = engines.create(config, config_lib.run_plan(config), training=False)
    weights.load_averaged(
        engine.network, checkpoints.load(checkpoints.find(model_dir, None))
    )
    size = config.eval.isize
    images = np.random.default_rng(0).uniform(
        -1.0, 1.0, [batch_size, size, size, 3]
    )
    images = images.astype(np.float32)

    def run_batches(number):
        start = time.perf_counter()
        for _ in range(number):
            engine.logits(images)
        return number * batch_size / (time.perf_counter() - start)

    run_batches(_WARM_UP)
    rates = [run_batches(_BATCHES) for _ in range(_ROUNDS)]
    return {
        "images_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "batch_size": batch_size,
        "image_size": size,
        "rounds": _ROUNDS,
        "batches_per_round": _BATCHES,
    }


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Measures, and writes inference.json."""
    cli.no_words(words)
    if not given.model_dir:
        raise UserError("--model_dir is missing, such as runs/fashion_mnist.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    result = measure(given.model_dir, given.batch_size)
    files.write_json(pathlib.Path(given.model_dir) / RESULT, result)
    print(
        f"{result['images_per_second']:,.0f} images/s in batches of "
        f"{result['batch_size']} at {result['image_size']} pixels"
    )


if __name__ == "__main__":
    cli.start(sys.modules[__name__], "python -m efficientnetv2.study.inference")
