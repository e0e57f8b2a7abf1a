"""What the scripts share: the clock, the data, and how a result is printed.

Imports neither TensorFlow nor PyTorch, and nothing of this package: a peer's
Python need not have them.
"""

import argparse
import json
import time
from collections.abc import Callable

WARM_UP = 5
CLASSES = 1000


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds the options that all scripts have, and parses the command line."""
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="time that is measured"
    )
    return parser.parse_args()


def images_per_second(
    step: Callable[[], object], batch: int, seconds: float
) -> float:
    """Returns the throughput of a function that is done with a batch a call."""
    for _ in range(WARM_UP):
        step()
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not calls:
        step()
        calls += 1
    return calls * batch / passed


def fit_images_per_second(model, dataset, batch: int, seconds: float) -> float:
    """Returns the throughput of `fit` of a compiled Keras model.

    Args:
        model: whose logs have a 'loss'.
        dataset: of batches, without an end.
        batch: images a step.
        seconds: that are measured, after a few steps that are not.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        steps, start, passed = -WARM_UP, 0.0, 0.0

        def on_train_batch_end(self, step, logs=None):
            float(logs["loss"])
            self.steps += 1
            if self.steps == 0:
                self.start = time.perf_counter()
            elif self.steps > 0:
                self.passed = time.perf_counter() - self.start
                self.model.stop_training = self.passed >= seconds

    clock = Clock()
    model.fit(
        dataset,
        steps_per_epoch=10**9,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return clock.steps * batch / clock.passed


def training_batch(batch: int, size: int, seed: int = 0):
    """Returns random images in [-1, 1) and one-hot labels, float32."""
    import numpy as np

    random = np.random.default_rng(seed)
    images = random.uniform(-1, 1, [batch, size, size, 3]).astype(np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)
    return images, labels[random.integers(0, CLASSES, batch)]


def photos(size: int, count: int = 256):
    """Returns images of coarse blocks, uint8 [count, size, size, 3]."""
    import numpy as np

    random = np.random.default_rng(0)
    side = -(-size // 8)
    blocks = random.integers(0, 256, [count, side, side, 3], np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]


def show(value: float, **versions: str) -> None:
    """Prints the result as the line that benchmarks/run.py reads.

    Args:
        value: the figure.
        **versions: of libraries that only this script uses.
    """
    print(json.dumps({"value": value, "versions": versions}))


def skip(reason: str) -> None:
    """Prints why there is no result."""
    print(json.dumps({"skipped": reason}))
