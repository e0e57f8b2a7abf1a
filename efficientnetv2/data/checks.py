"""Whether data can be read: at a glance before training, or image by image.

`look` reads the first bytes of every file, which takes seconds for a hundred
thousand; `check` decodes everything.
"""

import concurrent.futures
import io
import itertools
import os
import statistics
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections
import tensorflow as tf
from PIL import Image

from efficientnetv2 import progress
from efficientnetv2.data import decoding, faults, preprocessing, sources
from efficientnetv2.data.registry import DatasetInfo
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
)
from efficientnetv2.errors import DataError

_HEAD = 64
_SHOWN = 5
_AT_ONCE = 500
# Reading is waiting, above all on a network.
_THREADS = 16
_SAMPLE = 32
# Shrunk by more than this, images that are sampled look unlike themselves.
_MOST_SHRINKING = 2.0
# Other files by their first bytes.
_OTHERS = (
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\0\0\1\0", "an icon"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull)"),
)
_BRANDS = {b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC or AVIF"}
_BRANDS |= {b"avif": "an AVIF", b"avis": "an AVIF"}
_PAGES = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG"),
    (b"<?xml", "XML"),
    (b"{", "text"),
)
FORMATS = "JPEG, PNG, GIF, BMP and WebP"


def fault_of_beginning(head: bytes, size: int) -> str | None:
    """Returns why a file is no image by its first bytes, None if it may be.

    Args:
        head: its first bytes, 64 or all.
        size: of the file, in bytes.
    """
    if not size:
        return "it is empty"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        (length,) = struct.unpack("<I", head[4:8])
        return "it is cut short" if size < length + 8 else None
    if head.startswith(tuple(itertools.chain(*decoding.FIRST_BYTES.values()))):
        return None
    return f"it is {_kind(head)}, none of {FORMATS}"


def _kind(head: bytes) -> str:
    for beginning, kind in _OTHERS:
        if head.startswith(beginning):
            return kind
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, kind in _PAGES:
        if text.startswith(beginning):
            return kind
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "text"
    return "of an unknown kind"


# --- Before training --------------------------------------------------------


def before_training(
    config: ml_collections.ConfigDict,
    splits: Mapping[str, Source],
    log: Callable[[str], None],
) -> None:
    """Looks at the data of a run before its first step.

    Args:
        config: of the run.
        splits: name to split, the training split first.
        log: prints one line for what is worth knowing.

    Raises:
        DataError: names files that cannot be images.
    """
    count, bad, deep = 0, [], 0
    for source in splits.values():
        for number, (head, reason) in enumerate(_beginnings(source)):
            count += 1
            if reason:
                bad.append(f"{source.describe(number)}: {reason}")
            # The bits of a sample.
            deep += head[24:25] == b"\x10" and head[:4] == b"\x89PNG"
    if bad:
        more = f"\n  and {len(bad) - _SHOWN:,} more" * (len(bad) > _SHOWN)
        raise DataError(
            f"{len(bad):,} of {count:,} files cannot be read:\n  "
            + "\n  ".join(bad[:_SHOWN])
            + f"{more}\nRepair or remove them, or leave them out by "
            "data.on_corrupt=skip. `python -m efficientnetv2.data check "
            f"--dataset={config.data.ds_name}` decodes every image."
        )
    if deep:
        log(
            f"{deep:,} of {count:,} images are PNGs of 16 bits, of which the "
            "upper eight count, or those that the file says it uses (sBIT)."
        )
    if not config.data.antialias:
        factor = _shrinking(next(iter(splits.values())), config)
        if factor > _MOST_SHRINKING:
            log(
                f"Warning: images are shrunk by {factor:.1f} for evaluation "
                f"at eval.isize={config.eval.isize}, and pixels are skipped: "
                "fine patterns turn into others. data.antialias=true averages "
                "them; this recipe keeps to the numbers of the released code."
            )


def _beginnings(source: Source) -> Iterator[tuple[bytes, str | None]]:
    """Yields (first bytes, what is wrong with them) of each file, in order.

    Of shards the first bytes are not an image's, and are left out.
    """
    if isinstance(source, ArraySource):
        return
    if isinstance(source, StreamSource):
        look, items = _look_at_shard, [shard.path for shard in source.shards]
    else:
        look = _look_at_file if source.in_files else _look_at_item
        items = source.items

    def look_at_part(first):
        return [look(item) for item in items[first : first + _AT_ONCE]]

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(look_at_part, range(0, len(items), _AT_ONCE)):
            yield from part


def _look_at_file(path: str) -> tuple[bytes, str | None]:
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            head, size = os.read(file, _HEAD), os.fstat(file).st_size
        finally:
            os.close(file)
    except OSError as error:
        return b"", error.strerror
    return head, fault_of_beginning(head, size)


def _look_at_item(item: bytes) -> tuple[bytes, str | None]:
    head = item[:_HEAD]
    return head, fault_of_beginning(head, len(item))


def _look_at_shard(path: str) -> tuple[bytes, str | None]:
    """Checks the length that the first record has by its header."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        return b"", error.strerror
    # A shard may hold no record.
    if not size:
        return b"", None
    # A record has eight bytes for its length, and two checksums of four.
    if len(head) < 8 or struct.unpack("<Q", head)[0] + 16 > size:
        return b"", "it is cut short, or no file of TFRecords"
    return b"", None


def _shrinking(source: Source, config) -> float:
    """Returns by how much typical images are shrunk for evaluation."""
    shorter = [min(shape) for shape in _shapes(source)]
    if not shorter:
        return 1.0
    mode, _ = preprocessing.parse_augname(config.data.augname)
    size, side = config.eval.isize, int(statistics.median(shorter))
    if preprocessing.crops(size, mode, config.data.eval_transformations):
        side = int(preprocessing.central_window(side, side, size)[2])
    return side / size


def _shapes(source: Source) -> Iterator[tuple[int, int]]:
    """Yields width and height of some images that can be opened."""
    if isinstance(source, ArraySource):
        yield source.images.shape[1:3]
        return
    if isinstance(source, StreamSource):
        records = sources.records(source.shards[0]).take(_SAMPLE)
        try:
            items = [source.parse(each)[0].numpy() for each in records]
        except faults.READ_ERRORS:
            return
    else:
        items = source.items[:: max(1, len(source) // _SAMPLE)]
    for item in items:
        try:
            if isinstance(source, EncodedSource) and source.in_files:
                opened = Image.open(item)
            else:
                opened = Image.open(io.BytesIO(item))
            with opened as image:
                yield image.size
        except (OSError, ValueError, SyntaxError):
            continue


# --- Everything -------------------------------------------------------------


def check(
    info: DatasetInfo,
    load: Callable[[str], Source],
    log: Callable[[str], None] = progress.say,
) -> int:
    """Decodes every image of a dataset, and says which cannot be read.

    Args:
        info: of the dataset.
        load: returns a split by its name.
        log: prints one line for each fault.

    Returns:
        The number of faults.
    """
    count = wrong = 0
    splits: Sequence[str] = [
        name for name in ("train", "minival", "eval") if name in info.splits
    ]
    for split in splits:
        source = load(split)
        count += len(source)
        with progress.bar(f"Reading {split}", len(source)) as bar:
            for fault in faults.every(source, bar.update):
                log(fault)
                wrong += 1
        if isinstance(source, EncodedSource):
            for note in _dark(source):
                log(note)
    ending = f"{wrong:,} faults." if wrong else "all can be read."
    log(f"{count:,} images in {', '.join(splits)}: {ending}")
    return wrong


def _dark(source: EncodedSource) -> Iterator[str]:
    """Yields a note for each PNG of 16 bits that is nearly black."""
    for number, (head, _) in enumerate(_beginnings(source)):
        if head[24:25] != b"\x10" or head[:4] != b"\x89PNG":
            continue
        data = source.items[number]
        data = tf.io.read_file(data) if source.in_files else tf.constant(data)
        try:
            brightest = int(tf.reduce_max(decoding.decode(data)))
        except faults.READ_ERRORS:
            continue
        if brightest < 16:
            yield (
                f"Note: {source.describe(number)} is nearly black: of its 16 "
                "bits it uses at most 12 without saying so (sBIT). Scale it."
            )
