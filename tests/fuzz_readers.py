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
import json
import multiprocessing
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter

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

    from tests.conftest import encode

    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        image = Image.fromarray(
            pixels.squeeze(axis=-1 if shape[2] == 1 else ())
        )
        for mode, form, options in (
            *((None, form, {}) for form in "PNG JPEG GIF BMP WEBP".split()),
            *(("CMYK", "JPEG", {}), ("P", "BMP", {}), ("P", "PNG", {})),
            *(("RGBA", "PNG", {}), (None, "JPEG", {"progressive": True})),
            *((mode, "WEBP", {"lossless": True}) for mode in (None, "RGBA")),
            (None, "WEBP", {"save_all": True, "append_images": [image]}),
            (None, "WEBP", {"lossless": True, "exif": exif}),
            *((None, form, {"exif": exif}) for form in ("JPEG", "PNG")),
        ):
            files.append(encode(image.convert(mode), form, **options))
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


def check_images(first: int, last: int, report) -> Counter:
    """Decodes the damaged images of some seeds."""
    import tensorflow as tf

    from efficientnetv2.data import decoding

    files = seeds_of_images()
    decode = tf.function(
        decoding.decode,
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    counts = Counter()
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


def check_shards(first: int, last: int, report) -> Counter:
    """Reads the damaged shards of some seeds, record by record.

    Of every other seed the records themselves are damaged and have the right
    checksums, as a faulty writer would leave them.
    """
    import numpy as np

    from efficientnetv2.data import faults, loading, output, registry, sources

    written = [(f"image {k}".encode(), k % CLASSES) for k in range(RECORDS)]
    records = [output.to_example(i, np.array(label)) for i, label in written]
    names = [str(k) for k in range(CLASSES)]
    info = registry.DatasetInfo("fuzz", "tfrecord", CLASSES, {}, names)
    split, counts = registry.Split(RECORDS, files="shard"), Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "shard")
        _write(path, records)
        whole = path.read_bytes()
        for seed in range(first, last):
            report(seed)
            chance = random.Random(seed)
            if seed % 2:
                path.write_bytes(damage(whole, whole, chance))
            else:
                _write(path, [damage(r, whole, chance) for r in records[:2]])
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
                if seed % 20 == 0 and not any(faults.find_faults(source)):
                    raise AssertionError("no fault found") from error
    return counts


def _write(path, records) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


CHECKS = {"images": check_images, "shards": check_shards}


def _child(kind: str, first: int, last: int, now, results) -> None:
    def report(seed):
        now.value = seed

    try:
        results.send(CHECKS[kind](first, last, report))
    except Exception as error:
        results.send(f"{type(error).__name__}: {error}")


def _run_part(kind: str, first: int, last: int) -> Counter:
    """Checks some seeds in a child; a failure raises a RuntimeError."""
    context = multiprocessing.get_context("spawn")
    now, seed = context.Value("q", first - 1), None
    results, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_child, args=(kind, first, last, now, sender)
    )
    child.start()
    sender.close()
    found = "hangs"
    while now.value != seed:
        seed = now.value
        if results.poll(MOST_SECONDS):
            try:
                found = results.recv()
            except EOFError:
                found = "crashes"
            break
    child.kill()
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
    total, failures, start = Counter(), [], time.monotonic()
    for kind, count in (
        ("images", options.inputs - shards),
        ("shards", shards),
    ):
        last = options.first_seed + count
        for first in range(options.first_seed, last, PER_CHILD):
            try:
                total += _run_part(kind, first, min(last, first + PER_CHILD))
            except RuntimeError as error:
                failures.append(str(error))
                print(f"FAILED {error}", flush=True)
            print(dict(total), flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{total.total():,} inputs in {minutes:.1f} minutes: {dict(total)}")
    if options.json:
        content = {"first_seed": options.first_seed, "counts": dict(total)}
        content |= {"failures": failures, "minutes": minutes}
        pathlib.Path(options.json).write_text(json.dumps(content, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
