"""Feeds damaged images and shards to the readers, and counts what happens.

    make fuzz
    python -m tests.fuzz_readers --inputs=100000 --first_seed=0

Every input is a valid file with some damage: bits flipped, bytes written over,
left out or doubled, the end cut off, two files spliced. A reader may return an
image, or raise an error; a crash, a hang, an image of the wrong type, or a
record that was never written is a failure. Work is done in child processes,
so that a crash names its input: the seed rebuilds it.
"""

import argparse
import io
import json
import multiprocessing
import pathlib
import queue
import random
import sys
import tempfile
import time

SHAPES = ((24, 32, 3), (1, 1, 3), (7, 5, 1))
RECORDS = 12
CLASSES = 5
PER_CHILD = 5_000
# A reader that thinks longer than this about a small file hangs.
MOST_SECONDS = 60.0


def seeds_of_images() -> list[bytes]:
    """Returns small valid images of each format and colour mode."""
    import numpy as np
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        image = Image.fromarray(
            pixels.squeeze(axis=-1 if shape[2] == 1 else ())
        )
        variants = [
            (image, form, {}) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP")
        ]
        variants += [
            (image.convert("CMYK"), "JPEG", {}),
            (image.convert("P"), "BMP", {}),
            (image.convert("P"), "PNG", {}),
            (image.convert("RGBA"), "PNG", {}),
            (image, "JPEG", {"progressive": True}),
            (image, "WEBP", {"lossless": True}),
            (image.convert("RGBA"), "WEBP", {"lossless": True}),
            (image, "WEBP", {"save_all": True, "append_images": [image]}),
            (image, "WEBP", {"lossless": True, "exif": exif}),
            (image, "JPEG", {"exif": exif}),
            (image, "PNG", {"exif": exif}),
        ]
        for variant, form, options in variants:
            buffer = io.BytesIO()
            variant.save(buffer, form, **options)
            files.append(buffer.getvalue())
    return files


def damage(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Returns a damaged copy; `other` lends what is spliced in."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            return b""
        place = chance.randrange(len(data))
        length = chance.randrange(1, 1 + min(64, len(data)))
        kind = chance.randrange(7)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            start = chance.randrange(len(other))
            data[place : place + length] = other[start : start + length]
        else:
            data[place : place + 4] = chance.randbytes(4)
    return bytes(data)


def check_images(first: int, last: int, report) -> dict[str, int]:
    """Decodes the damaged images of some seeds."""
    import tensorflow as tf

    from efficientnetv2.data import decoding

    files = seeds_of_images()
    decode = tf.function(
        decoding.decode,
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    counts = {"images read": 0, "images refused": 0}
    for seed in range(first, last):
        report(seed)
        chance = random.Random(seed)
        data = damage(chance.choice(files), chance.choice(files), chance)
        try:
            image = decode(data)
        except tf.errors.OpError:
            counts["images refused"] += 1
            continue
        if image.dtype != tf.uint8 or image.shape[2:] != (3,):
            raise AssertionError(f"{image.dtype} {image.shape}")
        counts["images read"] += 1
    return counts


def _record(number: int) -> tuple[bytes, int, bytes]:
    import tensorflow as tf

    image, label = f"image {number}".encode(), number % CLASSES
    features = {
        "image/encoded": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[image])
        ),
        "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        ),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return image, label, example.SerializeToString()


def check_shards(first: int, last: int, report) -> dict[str, int]:
    """Reads the damaged shards of some seeds, record by record.

    Of every other seed the records themselves are damaged and have the right
    checksums, as a faulty writer would leave them.
    """
    import tensorflow as tf

    from efficientnetv2.data import faults, loading, registry, sources

    records = [_record(number) for number in range(RECORDS)]
    written = {(image, label) for image, label, _ in records}
    info = registry.DatasetInfo(
        name="fuzz",
        source="tfrecord",
        num_classes=CLASSES,
        splits={},
        class_names=[str(k) for k in range(CLASSES)],
    )
    split = registry.Split(RECORDS, files="shard")
    counts = {"shards read": 0, "shards refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "shard")
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _, _, record in records:
                writer.write(record)
        whole = path.read_bytes()
        for seed in range(first, last):
            report(seed)
            chance = random.Random(seed)
            if seed % 2:
                path.write_bytes(damage(whole, whole, chance))
            else:
                with tf.io.TFRecordWriter(str(path)) as writer:
                    for _, _, record in records[:2]:
                        writer.write(damage(record, whole, chance))
            source = loading.open_shards(info, split, pathlib.Path(folder))
            try:
                for image, label in sources.encoded_examples(source):
                    pair = (image.numpy(), int(label))
                    if seed % 2 and pair not in written:
                        raise AssertionError(f"a record never written: {pair}")
                    if not 0 <= pair[1] < CLASSES:
                        raise AssertionError(f"label {pair[1]}")
                counts["shards read"] += 1
            except faults.READ_ERRORS as error:
                counts["shards refused"] += 1
                # What a user is told, which is slow to find.
                if seed % 20 == 0 and not faults.find_faults(source):
                    raise AssertionError("no fault found") from error
    return counts


CHECKS = {"images": check_images, "shards": check_shards}


def _child(kind: str, first: int, last: int, now, results) -> None:
    def report(seed):
        now.value = seed

    try:
        results.put(CHECKS[kind](first, last, report))
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def _run_part(kind: str, first: int, last: int) -> dict[str, int]:
    """Checks some seeds in a child; a failure raises a RuntimeError."""
    context = multiprocessing.get_context("spawn")
    now, results = context.Value("q", first - 1), context.Queue()
    child = context.Process(
        target=_child, args=(kind, first, last, now, results)
    )
    child.start()
    seed, since = first - 1, time.monotonic()
    while True:
        try:
            found = results.get(timeout=1.0)
            break
        except queue.Empty:
            if now.value != seed:
                seed, since = now.value, time.monotonic()
            hangs = time.monotonic() - since > MOST_SECONDS
            if not hangs and child.is_alive():
                continue
            code = child.exitcode
            child.kill()
            found = "hangs" if hangs else f"crashes, exit status {code}"
            break
    child.join()
    if isinstance(found, str):
        raise RuntimeError(f"{kind}, seed {now.value}: {found}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--shard_share", type=float, default=0.1)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the counts to")
    options = parser.parse_args()
    shards = round(options.inputs * options.shard_share)
    total: dict[str, int] = {}
    failures = []
    start = time.monotonic()
    for kind, count in (
        ("images", options.inputs - shards),
        ("shards", shards),
    ):
        last = options.first_seed + count
        for first in range(options.first_seed, last, PER_CHILD):
            try:
                part = _run_part(kind, first, min(last, first + PER_CHILD))
            except RuntimeError as error:
                failures.append(str(error))
                print(f"FAILED {error}", flush=True)
                continue
            for name, number in part.items():
                total[name] = total.get(name, 0) + number
            print(total, flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{sum(total.values()):,} inputs in {minutes:.1f} minutes: {total}")
    if options.json:
        content = {
            "first_seed": options.first_seed,
            "counts": total,
            "failures": failures,
            "minutes": minutes,
        }
        pathlib.Path(options.json).write_text(json.dumps(content, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
