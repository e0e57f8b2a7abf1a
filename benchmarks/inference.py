"""Latency and throughput of every format, beside keras.applications' export.

    python benchmarks/inference.py
    python benchmarks/inference.py --size=300 --model=efficientnetv2-s

All forms run in one process and take turns, so that a slow minute of the
machine is not one form's alone. Weights are random: they change no time. Each
form takes pixels; what each does with them before the network counts, too.
Writes results/inference.md and .json.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import run

CLASSES = 1000
BATCH_SIZES = (1, 8, 32)
PEERS = {
    "efficientnetv2-b0": "EfficientNetV2B0",
    "efficientnetv2-b1": "EfficientNetV2B1",
    "efficientnetv2-b2": "EfficientNetV2B2",
    "efficientnetv2-b3": "EfficientNetV2B3",
    "efficientnetv2-s": "EfficientNetV2S",
    "efficientnetv2-m": "EfficientNetV2M",
    "efficientnetv2-l": "EfficientNetV2L",
}
WARM_UP = 2


def ours(model: str, size: int, folder: pathlib.Path) -> dict[str, Callable]:
    """Returns functions from uint8 images to probabilities, by format."""
    import numpy as np
    import tensorflow as tf

    from efficientnetv2 import config as config_lib
    from efficientnetv2.models import architecture
    from efficientnetv2.serving import litert, saved_model, to_onnx
    from efficientnetv2.serving.spec import ServingSpec

    options = config_lib.load_model(model, {"num_classes": CLASSES})["model"]
    network = architecture.build(options)
    names = [f"class {k}" for k in range(CLASSES)]
    spec = ServingSpec(size, "default", [], "softmax", names)
    saved_model.write(network, spec, folder / "saved_model")
    to_onnx.convert(network, spec, folder / "model.onnx")
    photos = np.random.default_rng(0).integers(0, 256, [8, size, size, 3])
    litert.convert(network, spec, folder, photos.astype(np.float32))
    served = saved_model.load(folder / "saved_model")
    onnx = to_onnx.load(folder / "model.onnx")
    int8 = litert.load(folder / "int8.tflite")

    @tf.function(reduce_retracing=True)
    def by_keras(images):
        logits = network(tf.cast(images, tf.float32) / 128.0 - 1.0)
        return spec.probabilities(logits)

    return {
        "SavedModel": served,
        "Keras": lambda images: by_keras(images).numpy(),
        "ONNX Runtime": lambda images: onnx(images.astype(np.float32)),
        "LiteRT int8, image by image": int8,
    }


def peer(name: str, size: int, folder: pathlib.Path) -> Callable:
    """Returns the SavedModel that `export` of keras.applications writes."""
    import keras
    import tensorflow as tf

    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=CLASSES
    )
    model.export(folder / "peer", verbose=False)
    loaded = tf.saved_model.load(folder / "peer")

    def classify(images):
        return loaded.serve(tf.cast(images, tf.float32)).numpy()

    return classify


def measure(
    forms: dict[str, Callable], size: int, rounds: int, calls: int
) -> Iterator[dict]:
    """Yields for each form and batch size the latencies in milliseconds."""
    import numpy as np

    for batch in BATCH_SIZES:
        images = np.random.default_rng(batch).integers(
            0, 256, [batch, size, size, 3], np.uint8
        )
        times: dict[str, list[float]] = {name: [] for name in forms}
        for name, classify in forms.items():
            for _ in range(WARM_UP):
                answer = classify(images)
            if answer.shape != (batch, CLASSES):
                raise SystemExit(f"{name} answered in {answer.shape}.")
        for _ in range(rounds):
            for name, classify in forms.items():
                for _ in range(calls):
                    start = time.perf_counter()
                    classify(images)
                    times[name].append(1e3 * (time.perf_counter() - start))
        for name, values in times.items():
            p50, p95 = (float(np.percentile(values, p)) for p in (50, 95))
            yield {
                "form": name,
                "batch_size": batch,
                "p50": p50,
                "p95": p95,
                "images_per_second": 1e3 * batch / p50,
            }


def markdown(content: dict) -> str:
    """Returns results/inference.md."""
    lines = [
        "# Inference",
        "",
        f"Written by `{content['command']}`.",
        "",
        ", ".join(f"{k} {v}" for k, v in content["machine"].items()) + ".",
        "",
        f"{content['model']}, {content['image_size']} px, {CLASSES} classes. "
        f"The forms took turns {content['rounds']} times, "
        f"{content['calls']} calls each; latency in ms of a call.",
        "",
        "| form | "
        + " | ".join(f"{b}: p50 | p95 | images/s" for b in BATCH_SIZES)
        + " |",
        "| --- |" + " ---: |" * 3 * len(BATCH_SIZES),
    ]
    forms = dict.fromkeys(row["form"] for row in content["rows"])
    for form in forms:
        cells = [
            f"{row['p50']:.1f} | {row['p95']:.1f} | "
            f"{row['images_per_second']:,.0f}"
            for row in content["rows"]
            if row["form"] == form
        ]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientnetv2-b0", choices=PEERS)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10, help="per round")
    parser.add_argument(
        "--out", default=str(run.ROOT / "results" / "inference")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        forms = ours(options.model, options.size, folder)
        label = f"keras.applications {PEERS[options.model]}, SavedModel"
        forms[label] = peer(PEERS[options.model], options.size, folder)
        rows = list(measure(forms, options.size, options.rounds, options.calls))
    content = {
        "command": " ".join(["python", *sys.argv]),
        "machine": run.machine(),
        "model": options.model,
        "image_size": options.size,
        "rounds": options.rounds,
        "calls": options.calls,
        "rows": rows,
    }
    text = json.dumps(content, indent=1) + "\n"
    pathlib.Path(f"{options.out}.json").write_text(text)
    pathlib.Path(f"{options.out}.md").write_text(markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
