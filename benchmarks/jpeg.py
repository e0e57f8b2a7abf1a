"""Photographs in JPEG to training images: the pipeline alone.

    python benchmarks/jpeg.py --size=128 --batch=64
    python benchmarks/jpeg.py --size=128 --batch=64 --whole

With random resized crops and flips and without a policy, so that decoding is
most of the work. --whole decodes whole images (data.fast_jpeg=false).
"""

import argparse
import io
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HEIGHT, WIDTH, PHOTOS = 375, 500, 256
# More than are measured.
STEPS = 100_000


def encoded_photos() -> list[bytes]:
    """Returns JPEGs of smooth shapes and a little noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    results = []
    for _ in range(PHOTOS):
        coarse = random.integers(0, 256, [9, 12, 3], np.uint8)
        photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.BICUBIC)
        noise = random.normal(0, 6, [HEIGHT, WIDTH, 3])
        pixels = np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        results.append(buffer.getvalue())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true")
    options = timing.parse(parser)
    import numpy as np

    from efficientnetv2 import config as config_lib
    from efficientnetv2 import progressive
    from efficientnetv2.config import RunPlan
    from efficientnetv2.data import pipeline, sources

    config = config_lib.load(
        "fashion_mnist",
        recipe="imagenet_code",
        hparam_str=f"train.batch_size={options.batch},"
        f"train.isize={options.size},train.stages=1,data.augname=null,"
        "data.transformations=crop|flip,data.mixup_alpha=0,data.cutmix_alpha=0,"
        f"data.fast_jpeg={not options.whole}",
    )
    plan = RunPlan(PHOTOS, PHOTOS // options.batch, STEPS)
    source = sources.EncodedSource(
        encoded_photos(), False, np.zeros(PHOTOS, np.int64), ["photo"]
    )
    dataset = pipeline.training_dataset(
        source, config, plan, progressive.build_stages(config, plan)
    )
    read = iter(dataset).__next__
    timing.show(timing.images_per_second(read, options.batch, options.seconds))


if __name__ == "__main__":
    main()
