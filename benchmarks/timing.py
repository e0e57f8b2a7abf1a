"""What ours.py and peers.py share: the clock, the data, the command line.

Imports nothing that a peer's Python need not have.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WARM_UP = 5
CLASSES = 1000
LAYERS = ("pointwise", "depthwise", "norm")
FORMS = ("saved_model", "keras", "onnx", "int8")


def images_per_second(
    step: Callable[[], object], batch: int, seconds: float
) -> float:
    """Returns the throughput of a function that does a batch per call."""
    for _ in range(WARM_UP):
        step()
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not calls:
        step()
        calls += 1
    return calls * batch / passed


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


def latency(classify: Callable, batch: int, size: int, seconds: float) -> dict:
    """Measures a function of batches of uint8 images.

    Returns:
        'value': the median time of a batch in ms; 'p95': the time within which
        95% of the batches are done.
    """
    import numpy as np

    images = np.random.default_rng(0).integers(
        0, 256, [batch, size, size, 3], np.uint8
    )
    for _ in range(WARM_UP):
        answer = classify(images)
    if answer.shape != (batch, CLASSES):
        raise SystemExit(f"It answered in {answer.shape}.")
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        classify(images)
        times.append(1e3 * (time.perf_counter() - start))
    median, p95 = np.percentile(times, [50, 95])
    return {"value": float(median), "p95": float(p95)}


def main(
    subjects: Sequence[Callable[[argparse.Namespace], object]],
) -> None:
    """Measures one of the subjects, and prints its figure as JSON.

    Args:
        subjects: functions from the options to a figure, or to a dict of
            'value' and perhaps 'versions' and 'p95', or of 'skipped', a
            sentence.
    """
    known = {subject.__name__: subject for subject in subjects}
    result = argparse.ArgumentParser()
    result.add_argument("subject", choices=known)
    result.add_argument("--size", type=int, default=32, help="pixels a side")
    result.add_argument("--batch", type=int, default=128, help="images a step")
    result.add_argument(
        "--seconds", type=float, default=20.0, help="time that is measured"
    )
    result.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "mixed_bfloat16", "bfloat16_products"),
    )
    result.add_argument("--full", action="store_true", help="of step")
    result.add_argument("--without", choices=LAYERS, help="of step")
    result.add_argument("--no_xla", action="store_true", help="of Keras")
    result.add_argument(
        "--threads", help="of Keras: within, and between operations"
    )
    result.add_argument("--whole", action="store_true", help="of jpeg")
    result.add_argument(
        "--per_image", action="store_true", help="of randaugment"
    )
    result.add_argument(
        "--on_device", action="store_true", help="of jpeg: no augmentation here"
    )
    result.add_argument("--images", type=int, default=100_000, help="of folder")
    result.add_argument(
        "--memory", action="store_true", help="of folder: the peak in GiB"
    )
    result.add_argument("--form", choices=FORMS, default=FORMS[0])
    result.add_argument(
        "--train", action="store_true", help="of keras_first_step: its child"
    )
    options = result.parse_args()
    answer = known[options.subject](options)
    if not isinstance(answer, dict):
        answer = {"value": answer}
    print(json.dumps(answer))
