"""From encoded images to upright pixels.

TensorFlow decodes; the helpers around it are TensorFlow operations as well, so
that the same code runs in the input pipeline and in a model that is exported.
"""

import io
import struct
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

JPEG, PNG, WEBP, BMP, GIF, UNKNOWN = range(6)
# The first bytes of a file of each format; WebP's are looked at apart.
FIRST_BYTES = {
    JPEG: (b"\xff\xd8\xff",),
    PNG: (b"\x89PNG\r\n\x1a\n",),
    BMP: (b"BM",),
    GIF: (b"GIF87a", b"GIF89a"),
}
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_PILLOW_ERRORS = (
    *(ValueError, SyntaxError, EOFError, struct.error),
    Image.DecompressionBombError,
)
# TIFF's types of a number: one, two or four bytes.
_BYTE, _SHORT, _LONG = 1, 3, 4
_MOST_ENTRIES = 1024
# Of EXIF orientations (1 to 8; 0 never): whether rows and columns are swapped
# in what is stored, and whether the rows, then the columns of what results
# are in reverse order.
SWAPPED = [k >= 5 for k in range(9)]
REVERSED = [[k in (3, 4, 7, 8), k in (2, 3, 6, 7), False] for k in range(9)]


# --- Reading bytes ----------------------------------------------------------


def _substring(data: tf.Tensor, start, count) -> tf.Tensor:
    """Returns at most `count` bytes from a place on, as a string."""
    length = tf.strings.length(data)
    start = tf.minimum(tf.cast(start, tf.int64), tf.cast(length, tf.int64))
    return tf.strings.substr(data, start, tf.cast(count, tf.int64))


def _bytes(data: tf.Tensor, start, count) -> tf.Tensor:
    """Returns int64 [count] bytes from a place on; zeros beyond the end.

    The count is at least 1.
    """
    found = tf.io.decode_raw(
        _substring(data, start, count),
        tf.uint8,
        fixed_length=tf.cast(count, tf.int32),
    )
    found.set_shape([count if isinstance(count, int) else None])
    return tf.cast(found, tf.int64)


def _number(values: tf.Tensor, little_endian) -> tf.Tensor:
    """Returns the number that the bytes [..., count] are: int64 [...]."""
    count = values.shape[-1]
    places = [1 << (8 * k) for k in range(count)]
    weights = tf.where(little_endian, places, places[::-1])
    return tf.reduce_sum(values * tf.cast(weights, tf.int64), axis=-1)


def _equal(values: tf.Tensor, expected: bytes) -> tf.Tensor:
    """Returns whether int64 [len(expected)] are these bytes."""
    return tf.reduce_all(values == tf.constant(list(expected), tf.int64))


def _walk(data: tf.Tensor, start, step: Callable) -> tf.Tensor:
    """Goes from part to part of a file, and returns a place in it, or -1.

    `step` maps the place of a part to that which is looked for, or -1, and
    the place of the next part, larger, or -1 for the end; int64 scalars.
    """
    length = tf.cast(tf.strings.length(data), tf.int64)
    _, found = tf.while_loop(
        lambda place, found: (found < 0) & (place >= 0) & (place < length),
        lambda place, _: step(place)[::-1],
        [tf.cast(start, tf.int64), tf.constant(-1, tf.int64)],
        parallel_iterations=1,
    )
    return found


def _if(condition, place) -> tf.Tensor:
    return tf.where(condition, tf.cast(place, tf.int64), -1)


# --- Formats ----------------------------------------------------------------


def format_of(data: tf.Tensor) -> tf.Tensor:
    """Returns the format of an encoded image by its first bytes: int32 scalar.

    One of `JPEG`, `PNG`, `WEBP`, `BMP`, `GIF` and `UNKNOWN`.
    """
    kinds, beginnings = zip(
        *[(k, text) for k, all_ in FIRST_BYTES.items() for text in all_],
        strict=True,
    )
    equal = tf.strings.substr(
        data,
        tf.zeros_like(kinds),
        tf.constant([len(text) for text in beginnings]),
    ) == tf.constant(beginnings)
    kind = tf.reduce_min(tf.where(equal, kinds, UNKNOWN))
    # "RIFF", a length, "WEBP".
    is_webp = tf.strings.substr(data, 0, 4) == b"RIFF"
    is_webp &= _substring(data, 8, 4) == b"WEBP"
    return tf.where(is_webp, WEBP, kind)


def _jpeg_exif(data: tf.Tensor) -> tf.Tensor:
    """Returns the place of EXIF among a JPEG's first segments, or -1."""
    exif = tf.constant(list(b"\xff\xe1\0\0" + _EXIF), tf.int64)
    # Marker and size, each of two bytes.
    weights = tf.constant([[256, 1, 0, 0], [0, 0, 256, 1]], tf.int64)

    def step(place):
        head = _bytes(data, place, 10)
        marker, size = tf.unstack(tf.reduce_sum(head[:4] * weights, axis=1))
        is_exif = tf.reduce_all((head == exif) | (tf.range(10) // 2 == 1))
        is_application = (marker >= 0xFFE0) & (marker <= 0xFFEF)
        is_comment = marker == 0xFFFE
        following = _if(is_application | is_comment, place + 2 + size)
        return _if(is_exif, place + 4), following

    # Most have a JFIF segment without a thumbnail, and tables behind it.
    plain = _substring(data, 2, 4) == b"\xff\xe0\0\x10"
    plain &= _substring(data, 20, 2) == b"\xff\xdb"
    return tf.cond(
        plain, lambda: tf.constant(-1, tf.int64), lambda: _walk(data, 2, step)
    )


def _png_chunk(data: tf.Tensor, name: bytes, last: bytes = b"IEND"):
    """Returns the place of the content of a PNG's chunk, -1 without it."""

    def step(place):
        head = _bytes(data, place, 8)
        end = place + 12 + _number(head[:4], False)
        found = _if(_equal(head[4:], name), place + 8)
        return found, _if(~_equal(head[4:], last), end)

    return _walk(data, 8, step)


def _webp_chunk(data: tf.Tensor, name: bytes, start=12) -> tf.Tensor:
    """Returns the place of a WebP's first chunk whose name begins so, or -1."""

    def step(place):
        head = _bytes(data, place, 8)
        size = _number(head[4:], True)
        found = _if(_equal(head[: len(name)], name), place)
        return found, place + 8 + size + size % 2

    return _walk(data, start, step)


def _webp_exif(data: tf.Tensor) -> tf.Tensor:
    """Returns the place of a WebP's EXIF, -1 if it has none."""
    head = _bytes(data, 12, 9)
    has_exif = _equal(head[:4], b"VP8X") & (head[8] // 8 % 2 == 1)

    def find():
        place = _webp_chunk(data, b"EXIF")
        return _if(place >= 0, place + 8)

    return tf.cond(has_exif, find, lambda: tf.constant(-1, tf.int64))


# --- Orientation ------------------------------------------------------------


def orientation(
    data: tf.Tensor, kind: tf.Tensor | int | None = None
) -> tf.Tensor:
    """Returns an encoded image's EXIF orientation: int32 scalar in [1, 8].

    EXIF is looked for in JPEG (APP1), PNG (eXIf) and WebP (EXIF). 1, upright,
    where there is none, or none that is valid. `kind` is what `format_of`
    returns, if it is known.
    """
    if kind is JPEG:
        place = _jpeg_exif(data)
    else:
        place = tf.switch_case(
            format_of(data) if kind is None else kind,
            [
                lambda: _jpeg_exif(data),
                lambda: _png_chunk(data, b"eXIf"),
                lambda: _webp_exif(data),
                lambda: tf.constant(-1, tf.int64),
            ],
        )
    return tf.cond(
        place >= 0, lambda: _orientation_at(data, place), lambda: tf.constant(1)
    )


def _orientation_at(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Reads the orientation from EXIF: a TIFF file with a directory."""
    start += tf.where(
        _equal(_bytes(data, start, len(_EXIF)), _EXIF),
        tf.constant(len(_EXIF), tf.int64),
        0,
    )
    head = _bytes(data, start, 8)
    little = _equal(head[:4], b"II*\0")
    valid = little | _equal(head[:4], b"MM\0*")
    directory = start + _number(head[4:], little)
    count = _number(_bytes(data, directory, 2), little)
    count = tf.clip_by_value(count, 1, _MOST_ENTRIES)
    entries = _bytes(data, directory + 2, 12 * count)
    entries = tf.reshape(entries, [-1, 12])
    kind = _number(entries[:, 2:4], little)
    value = tf.where(
        kind == _SHORT,
        _number(entries[:, 8:10], little),
        tf.where(
            kind == _LONG,
            _number(entries[:, 8:12], little),
            tf.where(kind == _BYTE, entries[:, 8], 0),
        ),
    )
    is_orientation = _number(entries[:, :2], little) == _ORIENTATION_TAG
    good = is_orientation & (value >= 1) & (value <= 8) & valid
    value = tf.reduce_max(tf.where(good, value, 1))
    return tf.cast(value, tf.int32)


def turn(image: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
    """Returns an image upright.

    Args:
        image: [height, width, channels], as it is stored.
        turned: EXIF orientation, int32 scalar in [1, 8].
    """

    def upright():
        swapped = tf.cond(
            turned >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image
        )
        reverse = tf.constant(REVERSED)[turned]
        return tf.raw_ops.Reverse(tensor=swapped, dims=reverse)

    result = tf.cond(turned > 1, upright, lambda: image)
    result.set_shape([None, None, image.shape[2]])
    return result


# --- Decoding ---------------------------------------------------------------


def decode(data: tf.Tensor, portable: bool = False) -> tf.Tensor:
    """Decodes an encoded image to RGB, upright.

    The EXIF orientation is applied. Grayscale is repeated, CMYK is converted,
    and transparency is dropped, as in Pillow's `convert("RGB")`. An animation
    gives its first frame. Samples of 16 bits give their upper eight bits; if
    the file says (sBIT) that fewer are used, and no pixel exceeds them, the
    upper eight of these.

    Args:
        data: string scalar: JPEG, PNG, BMP, GIF or WebP.
        portable: TensorFlow operations only, for a model that is exported;
            BMP is then read with 24 or 32 bits per pixel only.

    Returns:
        uint8 [height, width, 3].
    """

    def by_tensorflow():
        return tf.io.decode_image(data, channels=3, expand_animations=False)

    def by_pillow():
        image = tf.numpy_function(_decode_with_pillow, [data], tf.uint8)
        return tf.ensure_shape(image, [None, None, 3])

    kind = format_of(data)
    image = tf.switch_case(
        kind,
        [
            lambda: tf.io.decode_jpeg(data, channels=3),
            lambda: _decode_png(data),
            lambda: _decode_webp(data),
            by_tensorflow if portable else by_pillow,
            by_tensorflow,
            by_tensorflow,
        ],
    )
    image.set_shape([None, None, 3])
    return turn(image, orientation(data, kind))


def _decode_png(data: tf.Tensor) -> tf.Tensor:
    def of_16_bits():
        pixels = tf.io.decode_png(data, channels=3, dtype=tf.uint16)
        pixels = tf.cast(pixels, tf.int32)
        bits = tf.cast(_significant_bits(data), tf.int32)
        fits = tf.reduce_max(pixels) < tf.bitwise.left_shift(1, bits)
        bits = tf.where(fits, bits, 16)
        return tf.cast(tf.bitwise.right_shift(pixels * 256, bits), tf.uint8)

    # Bits of a sample.
    return tf.cond(
        _bytes(data, 24, 1)[0] == 16,
        of_16_bits,
        lambda: tf.io.decode_png(data, channels=3),
    )


def _significant_bits(data: tf.Tensor) -> tf.Tensor:
    """Returns how many bits a PNG of 16 says that it uses: int64 scalar."""
    place = _png_chunk(data, b"sBIT", last=b"IDAT")

    def read():
        size = _number(_bytes(data, place - 8, 4), False)
        has_alpha = _bytes(data, 25, 1)[0] // 4 % 2
        count = tf.maximum(tf.minimum(size, 4) - has_alpha, 1)
        bits = tf.reduce_max(_bytes(data, place, count))
        return tf.where((bits >= 1) & (bits <= 16), bits, 16)

    return tf.cond(place >= 0, read, lambda: tf.constant(16, tf.int64))


def _decode_webp(data: tf.Tensor) -> tf.Tensor:
    """Decodes a WebP, or the first frame of an animation.

    TensorFlow's decoder refuses animations without transparency, and may
    overwrite memory with others: it is given the frame as a file of its own.
    """
    header = _bytes(data, 12, 18)
    animated = _equal(header[:4], b"VP8X") & (header[8] // 2 % 2 == 1)

    def still(content):
        # With the number of channels that the file has, three or four.
        image = tf.io.decode_image(content, channels=0, expand_animations=False)
        image = tf.ensure_shape(image, [None, None, None])
        return image[:, :, :3]

    def first_frame():
        frame = _webp_chunk(data, b"ANMF")
        # Its transparency is a chunk before this one, or a part of it.
        start = _webp_chunk(data, b"VP8", frame + 24)
        check = tf.debugging.Assert(
            (frame >= 0) & (start >= 0), ["WebP animation without a frame"]
        )
        with tf.control_dependencies([check]):
            start = tf.identity(start)
        size = _number(_bytes(data, start + 4, 4), True)
        chunk = tf.strings.substr(data, start, 8 + size)
        padding = tf.strings.substr(b"\0", 0, tf.cast(size % 2, tf.int32))
        length = tf.cast(4 + 8 + size + size % 2, tf.uint32)
        length = tf.reshape(tf.bitcast(length, tf.uint8), [4])
        letters = tf.constant([bytes([k]) for k in range(256)])
        length = tf.strings.reduce_join(
            tf.gather(letters, tf.cast(length, tf.int32))
        )
        image = still(
            tf.strings.join([b"RIFF", length, b"WEBP", chunk, padding])
        )
        # Where the frame lies on the canvas.
        places = tf.concat([_bytes(data, frame + 8, 6), header[12:]], 0)
        places = tf.cast(_number(tf.reshape(places, [4, 3]), True), tf.int32)
        left, top, width, height = tf.unstack(
            places * [2, 2, 1, 1] + [0, 0, 1, 1]
        )
        return tf.image.pad_to_bounding_box(image, top, left, height, width)

    return tf.cond(animated, first_frame, lambda: still(data))


def _decode_with_pillow(data: bytes | np.ndarray) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(as_bytes(data))) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise OSError("not a valid BMP") from None
    except _PILLOW_ERRORS as error:
        raise OSError(str(error)) from None


def as_bytes(value: bytes | np.ndarray) -> bytes:
    """Returns a string that `tf.numpy_function` passed, in either form."""
    return np.asarray(value, dtype=object).item()


def to_portable(data: bytes) -> bytes:
    """Returns an encoded image that `decode(data, portable=True)` reads right.

    TensorFlow takes the numbers of a palette in a BMP for shades of gray, and
    reads few of its other forms; such an image becomes a PNG, any other stays
    as it is.

    Raises:
        OSError: if such an image cannot be decoded.
    """
    # Bytes 28 and 30 are the bits of a pixel and the compression.
    if data[:2] != b"BM" or (data[28:32] == b"\x18\0\0\0"):
        return data
    return tf.io.encode_png(_decode_with_pillow(data)).numpy()


def from_pillow(image: Image.Image) -> bytes:
    """Returns an image of Pillow as an upright PNG that `decode` reads alike.

    Raises:
        OSError: if its pixels cannot be read, or are real numbers.
    """
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            raise ValueError("its pixels are real numbers of unknown range")
        if upright.mode.startswith("I"):
            # Sixteen bits; `decode` takes the upper eight.
            pixels = np.asarray(upright)[..., np.newaxis]
            if pixels.min() < 0 or pixels.max() > 65_535:
                raise ValueError("its pixels have more than sixteen bits")
            pixels = pixels.astype(np.uint16)
        else:
            pixels = np.asarray(upright.convert("RGB"))
    except (ValueError, SyntaxError) as error:
        raise OSError(str(error)) from error
    return tf.io.encode_png(pixels).numpy()
