"""Whether data can be read: at a glance before training, or image by image.

A pipeline reads and decodes in TensorFlow's graph, whose errors name an
operation and no file; `explained` finds the example afterwards.
`before_training` reads the first bytes of every file, which takes seconds for a
hundred thousand; `check_dataset` decodes everything.
"""

import concurrent.futures
import contextlib
import functools
import io
import itertools
import os
import pathlib
import statistics
import struct
from collections.abc import Callable, Iterator, Mapping

import ml_collections
import tensorflow as tf
from PIL import Image

from efficientnetv2 import progress
from efficientnetv2.data import decoding, preprocessing, sources
from efficientnetv2.data.registry import DatasetInfo
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
)
from efficientnetv2.errors import DataError

_SHOWN = 5
_AT_ONCE = 500
# Reading mostly waits, above all on a network.
_THREADS = 16
_DECODERS = os.cpu_count() or 1
# Of a file, to see what it is.
_HEAD = 64
_SAMPLE = 32
# Files of one name and size in two splits, whose contents are compared.
_COMPARED = 100
# Shrunk by more than this, sampled images are distorted.
_MOST_SHRINKING = 2.0
# TensorFlow quotes a record that it cannot parse in its message; where the
# record is not UTF-8, raising the error fails itself.
_NO_EXAMPLE = "Could not parse example input"
READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)
FORMATS = "JPEG, PNG, GIF, BMP and WebP"
# Other kinds of files by their first bytes; text in lower case.
_OTHERS = {
    "a TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "a Photoshop file": (b"8BPS",),
    "a PDF": (b"%PDF",),
    "a zip archive": (b"PK\x03\x04",),
    "compressed by gzip": (b"\x1f\x8b",),
    "a JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "a JPEG 2000": (b"\0\0\0\x0cjP  ",),
    "an icon": (b"\0\0\1\0",),
    "a pointer of Git LFS (git lfs pull)": (b"version https://git-lfs",),
}
_PAGES = {
    "an HTML page": (b"<!doctype html", b"<html"),
    "an SVG": (b"<svg",),
    "XML": (b"<?xml",),
    "text": (b"{",),
}
_BRANDS = {
    b"heic": "a HEIC",
    b"heix": "a HEIC",
    b"mif1": "a HEIC or AVIF",
    b"avif": "an AVIF",
    b"avis": "an AVIF",
}


@contextlib.contextmanager
def explained(*read_from: Source):
    """Turns TensorFlow's errors about the splits read inside into a DataError.

    Raises:
        DataError: names the file, or the shard and record, and the class. An
            error that no example explains is raised as it is.
    """
    try:
        yield
    except READ_ERRORS as error:
        for source in read_from:
            for fault in find_faults(source):
                raise DataError(fault) from error
        raise


# --- At a glance ------------------------------------------------------------


def fault_of_beginning(head: bytes, size: int) -> str | None:
    """Returns why the first bytes are not an image's; None if they may be.

    Args:
        head: its first bytes, 64 or all.
        size: of the file, in bytes.
    """
    if not size:
        return "it is empty"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        (length,) = struct.unpack("<I", head[4:8])
        return "it is truncated" if size < length + 8 else None
    if head.startswith(tuple(itertools.chain(*decoding.FIRST_BYTES.values()))):
        return None
    return f"it is {_kind(head)}, not {FORMATS}"


def _kind(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for bytes_, kinds in ((head, _OTHERS), (text, _PAGES)):
        for kind, beginnings in kinds.items():
            if bytes_.startswith(beginnings):
                return kind
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "text"
    return "of an unknown kind"


def before_training(
    config: ml_collections.ConfigDict,
    splits: Mapping[str, Source],
    log: Callable[[str], None],
) -> None:
    """Looks at the data of a run before its first step.

    Args:
        splits: name to split, the training split first.
        log: prints one line for what is worth knowing.

    Raises:
        DataError: names files that cannot be images.
    """
    count, bad, deep = 0, [], 0
    trained, pairs = {}, []
    training = next(iter(splits.values()))
    for source in splits.values():
        in_files = isinstance(source, EncodedSource) and source.in_files
        for number, (head, size, reason) in enumerate(_beginnings(source)):
            count += 1
            if reason:
                bad.append(f"{source.describe(number)}: {reason}")
            deep += _is_deep(head)
            if in_files:
                path = source.items[number]
                key = os.path.basename(path), size
                if source is training:
                    trained[key] = path
                elif trained.get(key, path) != path:
                    pairs.append((path, trained[key]))
    if bad:
        more = f"\n  and {len(bad) - _SHOWN:,} more" * (len(bad) > _SHOWN)
        raise DataError(
            f"{len(bad):,} of {count:,} files cannot be read:\n  "
            + "\n  ".join(bad[:_SHOWN])
            + f"{more}\nRepair or remove them, or skip them with "
            "data.on_corrupt=skip. `python -m efficientnetv2.data check "
            f"--dataset={config.data.ds_name}` decodes every image."
        )
    if deep:
        log(
            f"{deep:,} of {count:,} images are 16-bit PNGs. Only their upper "
            "eight bits are used, or those given by sBIT."
        )
    same = [
        path
        for path, other in pairs[:_COMPARED]
        if pathlib.Path(path).read_bytes() == pathlib.Path(other).read_bytes()
    ]
    if same:
        log(
            f"{'At least ' * (len(pairs) > _COMPARED)}{len(same):,} images of "
            f"validation or test are also training images, such as {same[0]}: "
            "their accuracy says little."
        )
    factor = 0 if config.data.antialias else _shrinking(training, config)
    if factor > _MOST_SHRINKING:
        log(
            f"Warning: images are shrunk by {factor:.1f} for evaluation at "
            f"eval.isize={config.eval.isize}, which skips pixels and distorts "
            "fine patterns. data.antialias=true averages pixels instead; this "
            "recipe follows the released code."
        )


def _is_deep(head: bytes) -> bool:
    # A PNG whose samples have 16 bits.
    return head[24:25] == b"\x10" and head[:4] == b"\x89PNG"


def _beginnings(source: Source) -> Iterator[tuple[bytes, int, str | None]]:
    """Yields first bytes, size and what is wrong of each file, in order.

    Of shards the first bytes are not an image's, and are left out.
    """
    if isinstance(source, ArraySource):
        return
    if isinstance(source, StreamSource):
        items = [shard.path for shard in source.shards]
        is_file, fault_of = True, _fault_of_shard
    else:
        items = source.items
        is_file, fault_of = source.in_files, fault_of_beginning

    def look(item):
        if not is_file:
            return item[:_HEAD], len(item), fault_of(item[:_HEAD], len(item))
        try:
            file = os.open(item, os.O_RDONLY)
            try:
                head, size = os.read(file, _HEAD), os.fstat(file).st_size
            finally:
                os.close(file)
        except OSError as error:
            return b"", 0, error.strerror
        return head, size, fault_of(head, size)

    def look_at_part(first):
        return [look(item) for item in items[first : first + _AT_ONCE]]

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(look_at_part, range(0, len(items), _AT_ONCE)):
            yield from part


def _fault_of_shard(head: bytes, size: int) -> str | None:
    """Checks the length that the first record has by its header."""
    # A shard may hold no record. A record has eight bytes for its length, and
    # two checksums of four.
    if size and (size < 16 or struct.unpack("<Q", head[:8])[0] + 16 > size):
        return "it is truncated, or not a TFRecord file"
    return None


def _shrinking(source: Source, config) -> float:
    """Returns by how much typical images are shrunk for evaluation."""
    shorter = [min(shape) for shape in _shapes(source)]
    if not shorter:
        return 1.0
    mode = config.data.normalization
    size, side = config.eval.isize, int(statistics.median(shorter))
    if preprocessing.crops(size, mode, config.data.eval_transformations):
        side = int(preprocessing.central_window(side, side, size)[2])
    return side / size


def _shapes(source: Source) -> Iterator[tuple[int, int]]:
    """Yields width and height of some images that can be opened."""
    if isinstance(source, ArraySource):
        yield source.images.shape[1:3]
        return
    in_files = isinstance(source, EncodedSource) and source.in_files
    if isinstance(source, StreamSource):
        items = []
        with contextlib.suppress(*READ_ERRORS):
            for record in sources.records(source.shards[0]).take(_SAMPLE):
                items.append(source.parse(record)[0].numpy())
    else:
        items = source.items[:: max(1, len(source) // _SAMPLE)]
    for item in items:
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            with Image.open(item if in_files else io.BytesIO(item)) as image:
                yield image.size


# --- Everything -------------------------------------------------------------


def check_dataset(
    info: DatasetInfo,
    load: Callable[[str], Source],
    log: Callable[[str], None] = progress.say,
) -> int:
    """Decodes every image of a dataset, and says which cannot be read.

    Args:
        load: returns a split by its name.
        log: prints one line for each fault.

    Returns:
        The number of faults.
    """
    count = wrong = 0
    splits = [k for k in ("train", "minival", "eval") if k in info.splits]
    for split in splits:
        source = load(split)
        count += len(source)
        with progress.bar(f"Reading {split}", len(source)) as bar:
            for fault in find_faults(source, bar.update):
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
    for number, (head, *_) in enumerate(_beginnings(source)):
        if not _is_deep(head):
            continue
        data = source.items[number]
        with contextlib.suppress(*READ_ERRORS):
            data = tf.io.read_file(data) if source.in_files else data
            if tf.reduce_max(decoding.decode(tf.constant(data))) < 16:
                yield (
                    f"Note: {source.describe(number)} is nearly black: it uses "
                    "at most 12 of its 16 bits without saying so (sBIT). "
                    "Rescale it."
                )


def find_faults(
    source: Source, advance: Callable[[int], object] = lambda _: None
) -> Iterator[str]:
    """Yields what is wrong with each bad example, in order.

    Reads and decodes every example, several in parallel, and calls `advance`
    with a number of examples when they are done.
    """
    if isinstance(source, ArraySource):
        advance(len(source))
    elif isinstance(source, StreamSource):
        yield from _in_shards(source, advance)
    else:
        for index, reason in enumerate(reasons_of_items(source)):
            advance(1)
            if reason:
                yield (
                    f"{source.describe(index)} cannot be read: {reason}. "
                    "Repair or remove it."
                )


def reasons_of_items(source: EncodedSource) -> Iterator[str | None]:
    """Yields why each example cannot be read, in order; None if it can be."""

    def reason_of(item):
        try:
            data = tf.io.read_file(item) if source.in_files else item
            return fault_of_image(tf.constant(data))
        except READ_ERRORS as error:
            return _reason(error)

    with concurrent.futures.ThreadPoolExecutor(_DECODERS) as pool:
        # A caller that wants one fault need not wait for the others.
        for first in range(0, len(source), _AT_ONCE):
            yield from pool.map(reason_of, source.items[first:][:_AT_ONCE])


def _in_shards(source, advance) -> Iterator[str]:
    total, look = 0, functools.partial(_in_shard, source, advance)
    with concurrent.futures.ThreadPoolExecutor(_DECODERS) as pool:
        for first in range(0, len(source.shards), _DECODERS):
            part = source.shards[first : first + _DECODERS]
            for count, faults in pool.map(look, part):
                total += count
                yield from faults
    if total < source.num_images:
        yield (
            f"The shards hold {total:,} examples, fewer than the "
            f"{source.num_images:,} of the dataset's YAML file: "
            f"{source.shards[0].path} and {len(source.shards) - 1} more."
        )


def _in_shard(source, advance, shard) -> tuple[int, list[str]]:
    """Returns the number of a shard's records, and what is wrong."""
    number, faults = shard.skip, []
    records = iter(sources.records(shard))
    while True:
        place = f"{shard.path}, record {number:,}"
        try:
            record = next(records)
        except StopIteration:
            break
        except tf.errors.DataLossError:
            faults.append(
                f"{shard.path} is corrupt or truncated at record {number:,}. "
                "Write or copy it again."
            )
            break
        except READ_ERRORS as error:
            faults.append(f"{shard.path}: {_reason(error)}.")
            break
        try:
            reason = fault_of_image(source.parse(record)[0])
            if reason:
                faults.append(f"{place}: the image cannot be read: {reason}.")
        except READ_ERRORS as error:
            faults.append(f"{place}: {_reason(error)}.")
        number += 1
        advance(1)
    return number - shard.skip, faults


@functools.cache
def _decode():
    """Returns `decoding.decode`, traced once, so that threads can share it."""
    return tf.function(
        decoding.decode,
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )


def fault_of_image(data: tf.Tensor) -> str | None:
    """Returns why an encoded image cannot be decoded, None if it can be."""
    if not tf.strings.length(data):
        return "it is empty"
    try:
        _decode()(data)
    except READ_ERRORS as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    text = getattr(error, "message", "")
    if isinstance(error, UnicodeDecodeError) or _NO_EXAMPLE in text:
        return "it is not a tf.train.Example"
    if "label out of range" in text:
        # The assertion shows the label and the number of classes.
        values = text.partition("label out of range")[2]
        label, classes = values.replace("'", " ").split()[:2]
        return f"the label {label.strip('[]')} is not below {classes}"
    if "\n\t [[" in text:
        # What happened comes last, below where it was defined.
        lines = text.partition("\n\t [[")[0].strip().splitlines()
        return lines[-1].removeprefix("OSError: ").rstrip(".")
    text = text.splitlines()[0].partition("}} ")[2] or text.splitlines()[0]
    return text.partition(" [Op:")[0].rstrip(".")
