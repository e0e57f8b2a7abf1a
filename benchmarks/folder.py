"""Seconds, or memory, to the first step on a folder of many images.

    python benchmarks/folder.py --images=100000 [--memory]

Writes small JPEG images in a hundred classes to a temporary folder, and starts
`python -m efficientnetv2.main --dataset=FOLDER`, with all its defaults.
"""

import argparse
import concurrent.futures
import os
import pathlib
import resource
import sys
import tempfile

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLASSES = 100


def write_class(folder: pathlib.Path, number: int, images: int) -> None:
    """Writes the images of a class, each of other colours."""
    import numpy as np
    from PIL import Image

    folder = folder / f"class_{number:03d}"
    folder.mkdir()
    generator = np.random.default_rng(number)
    for index in range(images):
        coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(coarse.repeat(8, 0).repeat(8, 1))
        image.save(folder / f"{index:06d}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument(
        "--memory", action="store_true", help="show the peak in GiB instead"
    )
    options = timing.parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        images = pathlib.Path(folder, "photos")
        images.mkdir()
        with concurrent.futures.ProcessPoolExecutor() as pool:
            each = options.images // CLASSES
            for job in [
                pool.submit(write_class, images, number, each)
                for number in range(CLASSES)
            ]:
                job.result()
        from efficientnetv2.study import benchmark

        seconds = benchmark.seconds_to_line(
            [
                *(sys.executable, "-m", "efficientnetv2.main"),
                *(f"--dataset={images}", "--mode=train"),
                f"--model_dir={folder}/run",
            ],
            " loss ",
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    timing.show(peak / 2**20 if options.memory else seconds)


if __name__ == "__main__":
    main()
