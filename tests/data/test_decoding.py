"""Orientation, transparency, animation, bits: as cameras and tools write."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from efficientnetv2 import progressive
from efficientnetv2.data import decoding, pipeline, preprocessing, sources
from tests.conftest import encode

HEIGHT, WIDTH = 40, 56
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([_X * 4, _Y * 6, (_X + _Y) * 2], -1).astype(np.uint8)
# How Pillow stores an upright image for each orientation.
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_decode = tf.function(
    decoding.decode,
    input_signature=[tf.TensorSpec([], tf.string)],
    autograph=False,
)
_decode_portable = tf.function(
    lambda data: decoding.decode(data, portable=True),
    input_signature=[tf.TensorSpec([], tf.string)],
    autograph=False,
)


def stored(image, orientation, form="JPEG", **options):
    """Returns an upright image as a file with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    if _STORED[orientation] is not None:
        image = image.transpose(_STORED[orientation])
    return encode(image, form, exif=exif, **options)


def with_app1(data, payload):
    """Puts an APP1 segment behind a JPEG's start."""
    segment = b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    return data[:2] + segment + data[2:]


def tiff(entries, order="<", cut=None, magic=42):
    """Returns EXIF with these (tag, type, count, four bytes)."""
    head = {"<": b"II", ">": b"MM"}[order]
    head += struct.pack(order + "HI", magic, 8)
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count) + value
    return (b"Exif\0\0" + head + body + b"\0\0\0\0")[:cut]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", _STORED)
def test_images_are_upright(orientation, form):
    upright = Image.fromarray(PIXELS)
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "PNG": {}}
    data = stored(
        upright, orientation, form, **options.get(form, {"lossless": True})
    )
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    for function in (_decode, _decode_portable):
        result = function(data).numpy()
        assert result.shape == PIXELS.shape
        difference = np.abs(result.astype(int) - expected)
        assert difference.max() <= (8 if form == "JPEG" else 0)
        assert np.abs(result.astype(int) - PIXELS).mean() < 3


def test_exif_in_every_form():
    short = struct.pack("<HH", 6, 0)
    big = struct.pack(">HH", 6, 0)
    plain = encode(Image.fromarray(PIXELS))
    jfif, after = plain[:20], plain[20:]
    entry = (0x0112, 3, 1, short)
    other = (0x010F, 2, 4, b"abc\0")
    cases = [
        (tiff([entry]), 6),
        (tiff([other, entry]), 6),
        (tiff([(0x0112, 3, 1, big)], ">"), 6),
        (tiff([(0x0112, 4, 1, struct.pack(">I", 6))], ">"), 6),
        (tiff([(0x0112, 1, 1, b"\6\0\0\0")]), 6),
        # Cut behind the entry, in it, before it.
        (tiff([entry, other], cut=6 + 8 + 2 + 12), 6),
        (tiff([other, entry], cut=6 + 8 + 2 + 12), 1),
        (tiff([entry], cut=6 + 8 + 2 + 6), 1),
        (tiff([entry], cut=6 + 8), 1),
        (tiff([entry], cut=8), 1),
        (b"Exif\0\0", 1),
        (tiff([entry], magic=43), 1),
        (tiff([]), 1),
        (tiff([(0x0112, 3, 1, struct.pack("<HH", 0, 0))]), 1),
        (tiff([(0x0112, 3, 1, struct.pack("<HH", 9, 0))]), 1),
        # A text, and a number in another place than the tag's.
        (tiff([(0x0112, 2, 2, b"6\0\0\0")]), 1),
        (tiff([(0x0113, 3, 1, short)]), 1),
        (b"http://ns.adobe.com/xap/1.0/\0" + tiff([entry]), 1),
        # The directory elsewhere, or beyond the end.
        (b"Exif\0\0II*\0\x0c\0\0\0xxxx" + tiff([entry])[14:], 6),
        (b"Exif\0\0II*\0\xff\xff\xff\xff" + tiff([entry])[14:], 1),
    ]
    for number, (payload, expected) in enumerate(cases):
        result = decoding.orientation(tf.constant(with_app1(plain, payload)))
        assert result.numpy() == expected, number
    # Behind JFIF, behind XMP, behind a thumbnail in APP0, behind ICC.
    segment = with_app1(b"\xff\xd8", tiff([entry]))[2:]
    xmp = with_app1(b"\xff\xd8", b"http://ns.adobe.com/xap/1.0/\0<x/>")[2:]
    icc = b"\xff\xe2\xff\xf0" + b"\xff\xe1" * (0xFFEE // 2)
    for before in (b"", xmp, icc, icc + icc + xmp, b"\xff\xfe\0\x04hi"):
        data = jfif + before + segment + after
        assert decoding.orientation(tf.constant(data)).numpy() == 6
        assert _decode(data).shape == (WIDTH, HEIGHT, 3)
    # The pixels of one thumbnail, with EXIF of its own, say nothing.
    inner = with_app1(plain, tiff([entry]))
    outer = with_app1(plain, tiff([other]) + inner)
    assert decoding.orientation(tf.constant(outer)).numpy() == 1
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"x"):
        assert decoding.orientation(tf.constant(data)).numpy() == 1


@pytest.mark.parametrize("orientation", _STORED)
@pytest.mark.parametrize("antialias", [False, True])
def test_parts_of_turned_jpegs(orientation, antialias):
    random = np.random.default_rng(orientation)
    coarse = random.integers(0, 256, (31, 42, 3), np.uint8)
    upright = Image.fromarray(coarse.repeat(3, 0).repeat(3, 1))
    data = tf.constant(stored(upright, orientation, subsampling=0, quality=95))
    whole = decoding.decode(data)
    assert whole.shape == (93, 126, 3)
    boxes = [(0, 0, 93, 126), (-7.25, 12.5, 93, 126), (50, 3, 40, 60)]
    for box in boxes:
        for size in (40, 19, 9):
            part, inner = preprocessing.decode_part(
                data, tf.constant(box, tf.float32), size, antialias
            )
            expected, result = (
                preprocessing.crop_resize_flip(
                    image[tf.newaxis],
                    tf.cast([where], tf.float32),
                    [True],
                    size,
                    antialias,
                ).numpy()
                for image, where in ((whole, box), (part, inner))
            )
            factor = (4 if antialias else 2) * size
            if min(box[2:]) < factor:
                np.testing.assert_allclose(result, expected, atol=0.2)
            elif antialias:
                # Decoded smaller: still nearly the same.
                assert np.abs(result - expected).mean() < 6


@pytest.mark.slow
def test_training_sees_upright_images(tiny_config):
    upright = Image.fromarray(PIXELS)
    items = [stored(upright, k, quality=98, subsampling=0) for k in _STORED]
    items[-1] = stored(upright, 8, "PNG")
    source = sources.EncodedSource(
        items, False, np.zeros(8, np.int64), list("ab")
    )
    for fast in ("true", "false"):
        config = tiny_config(
            "train.batch_size=8,train.stages=1,data.augname=null,"
            "data.transformations=,data.mixup_alpha=0,data.cutmix_alpha=0,"
            f"data.fast_jpeg={fast}"
        )
        plan = progressive.plan_run(config, 8, 1)
        dataset = pipeline.training_dataset(source, config, plan)
        images, _ = next(dataset.as_numpy_iterator())
        expected = preprocessing.preprocess_for_eval(
            PIXELS, 24, transformations=[], antialias=True
        )
        assert np.abs(images - expected).max() < 0.1
    evaluated = pipeline.evaluation_dataset(source, config)
    images, _ = next(evaluated.as_numpy_iterator())
    assert np.abs(images - expected).max() < 0.1


def test_v1_crops_what_is_upright():
    data = tf.constant(stored(Image.fromarray(PIXELS), 6, quality=98))
    turned = preprocessing.decode_for_eval(data, 24, "v1")
    expected = preprocessing.preprocess_for_eval(PIXELS, 24, "v1")
    assert np.abs(turned - expected).max() < 0.3


def _transparent():
    rgba = np.dstack([PIXELS, np.full((HEIGHT, WIDTH), 128, np.uint8)])
    rgba[:10, :, 3] = 1
    return Image.fromarray(rgba)


def _small_frame():
    """Returns an animation whose first frame covers a part of the canvas."""
    data = encode(
        Image.fromarray(PIXELS),
        "WEBP",
        lossless=True,
        save_all=True,
        append_images=[Image.fromarray(PIXELS[::-1].copy())],
    )
    canvas = data.index(b"VP8X") + 12
    data = bytearray(data)
    data[canvas : canvas + 6] = bytes([WIDTH + 9, 0, 0, HEIGHT + 7, 0, 0])
    frame = data.index(b"ANMF") + 8
    data[frame : frame + 6] = bytes([3, 0, 0, 2, 0, 0])
    return bytes(data)


def test_every_webp():
    image, other = Image.fromarray(PIXELS), _transparent()
    exif = Image.Exif()
    exif[0x0112] = 3
    animation = {"save_all": True, "append_images": [image.rotate(180)]}
    exact = {"lossless": True, "exact": True}
    cases = [
        encode(image, "WEBP", lossless=True),
        encode(image, "WEBP"),
        encode(other, "WEBP", **exact),
        encode(other, "WEBP", quality=100),
        encode(image, "WEBP", lossless=True, **animation),
        encode(image, "WEBP", **animation),
        encode(other, "WEBP", **exact, **animation),
        encode(other, "WEBP", quality=100, **animation),
        encode(image, "WEBP", lossless=True, exif=exif, **animation),
        _small_frame(),
    ]
    for number, data in enumerate(cases):
        with Image.open(io.BytesIO(data)) as opened:
            expected = ImageOps.exif_transpose(opened).convert("RGB")
        for function in (_decode, _decode_portable):
            result = function(data).numpy()
            difference = np.abs(result.astype(int) - np.asarray(expected))
            assert difference.max() <= 2, number
    cut = cases[4][: len(cases[4]) // 3]
    without = cases[4].replace(b"ANMF", b"XXXX")
    for data in (cut, without):
        with pytest.raises(tf.errors.OpError):
            _decode(data)


def _with_chunk(png, name, content):
    """Puts a chunk behind a PNG's header."""
    chunk = struct.pack(">I", len(content)) + name + content
    chunk += struct.pack(">I", zlib.crc32(name + content))
    return png[:33] + chunk + png[33:]


def test_png_of_sixteen_bits():
    deep = PIXELS[..., 0].astype(np.uint16)
    gray = np.repeat(PIXELS[..., :1], 3, -1)
    twelve = encode(Image.fromarray(deep << 4), "PNG")
    sixteen = encode(Image.fromarray(deep << 8), "PNG")
    cases = [
        (sixteen, gray),
        # As its standard wants it: scaled to sixteen bits.
        (_with_chunk(sixteen, b"sBIT", b"\x0c"), gray),
        (_with_chunk(twelve, b"sBIT", b"\x0c"), gray),
        (_with_chunk(twelve, b"sBIT", b"\0"), gray >> 4),
        (twelve, gray >> 4),
    ]
    colour = tf.io.encode_png(PIXELS.astype(np.uint16) << 4).numpy()
    cases.append((_with_chunk(colour, b"sBIT", b"\x0c\x0b\x0c"), PIXELS))
    alpha = np.dstack([PIXELS.astype(np.uint16) << 2, np.full_like(deep, 1023)])
    data = tf.io.encode_png(alpha).numpy()
    cases.append((_with_chunk(data, b"sBIT", b"\x0a\x0a\x0a\x10"), PIXELS))
    for number, (data, expected) in enumerate(cases):
        for function in (_decode, _decode_portable):
            np.testing.assert_array_equal(
                function(data).numpy(), expected, err_msg=str(number)
            )


def test_other_forms():
    image = Image.fromarray(PIXELS)
    frames = {"save_all": True, "append_images": [image.convert("L")]}
    cases = [
        encode(image, "PNG"),
        encode(image.convert("L"), "PNG"),
        encode(image, "BMP"),
        encode(image.quantize(16), "GIF", **frames),
        encode(image, progressive=True),
        encode(image.convert("L")),
        encode(image.convert("CMYK"), quality=95),
        encode(image.convert("1"), "PNG"),
        encode(image.quantize(4), "PNG", bits=2),
        encode(image.convert("P"), "PNG", transparency=3),
        encode(_transparent(), "PNG"),
        encode(_transparent().convert("LA"), "PNG"),
        encode(image.convert("1"), "BMP"),
        encode(image.convert("L"), "BMP"),
        encode(image.convert("P"), "BMP"),
        encode(_transparent(), "BMP"),
        encode(_transparent(), "GIF"),
        encode(image, "GIF", interlace=1),
    ]
    for number, data in enumerate(cases):
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGB"))
        portable = decoding.to_portable(data)
        for result in (_decode(data), _decode_portable(portable)):
            difference = np.abs(np.int32(result) - expected).max()
            assert difference <= (6 if data[:2] == b"\xff\xd8" else 0), number


@pytest.mark.parametrize("mode", preprocessing.MODES)
def test_shrinking_averages(mode):
    y, x = np.mgrid[:120, :160]
    weave = np.where((x + y) % 2 == 0, 228, 28).astype(np.uint8)
    weave = np.repeat(weave[..., None], 3, -1)
    evaluated = {
        antialias: preprocessing.to_pixels(
            preprocessing.preprocess_for_eval(
                weave, 24, mode, [], antialias=antialias
            ),
            mode,
        ).numpy()
        for antialias in (False, True)
    }
    np.testing.assert_allclose(evaluated[True], 128, atol=2)
    assert evaluated[False].std() > 20
    # What is not shrunk stays as it was, to the last bit.
    for antialias in (False, True):
        large = preprocessing.resize(PIXELS, 64, mode, antialias)
        np.testing.assert_array_equal(
            large, preprocessing.resize(PIXELS, 64, mode)
        )


def test_crops_average_as_resizing_does():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 50, 70, 3)).astype(np.uint8)
    boxes = np.float32(
        [[0, 0, 50, 70], [3, 5, 40, 61], [7, 9, 20, 20], [-5, -7, 50, 70]]
    )
    flip = tf.constant([False, True, False, False])

    def crop(first, last, antialias=True):
        parts = (each[first:last] for each in (images, boxes, flip))
        return preprocessing.crop_resize_flip(*parts, 24, antialias).numpy()

    result = crop(0, 4)
    for k in (0, 1):
        top, left, height, width = boxes[k].astype(int)
        part = images[k, top : top + height, left : left + width]
        expected = tf.image.resize(part, (24, 24), antialias=True).numpy()
        expected = expected[:, ::-1] if flip[k] else expected
        np.testing.assert_allclose(result[k], expected, atol=1e-3)
    # Not shrunk: sampled as ever.
    np.testing.assert_array_equal(result[2], crop(0, 4, False)[2])
    # Border pixels go on beyond the border.
    wide = np.pad(images[3], ((5, 0), (7, 0), (0, 0)), "edge")[:50, :70]
    expected = tf.image.resize(wide, (24, 24), antialias=True).numpy()
    np.testing.assert_allclose(result[3], expected, atol=1e-3)
    for k in range(4):
        np.testing.assert_allclose(crop(k, k + 1)[0], result[k], atol=1e-4)


# --- JPEGs of which only the crop is decoded ---------------------------------


def _jpeg(pixels, mode="RGB", **options):
    return encode(Image.fromarray(pixels).convert(mode), **options)


def _blocks(height, width, seed=0):
    """Hard edges in colours, which decoders interpolate."""
    random = np.random.default_rng(seed)
    shape = (-(-height // 3), -(-width // 3), 3)
    coarse = random.integers(0, 256, shape, np.uint8)
    return np.kron(coarse, np.ones((3, 3, 1), np.uint8))[:height, :width]


def _both(data, box, size):
    """Returns the crop of the whole image, of the part, and the part."""
    assert preprocessing.can_decode_part(tf.constant(data))
    whole = decoding.decode(tf.constant(data))
    part, inner = preprocessing.decode_part(
        tf.constant(data), tf.constant(box, tf.float32), size
    )
    crops = [
        preprocessing.crop_resize_flip(
            image[tf.newaxis], tf.cast([where], tf.float32), [False], size
        ).numpy()
        for image, where in ((whole, box), (part, inner))
    ]
    return *crops, part


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"subsampling": 2, "progressive": True}),
        ("L", {}),
    ],
)
def test_at_full_scale_the_crops_are_equal(mode, options):
    height, width, size = 93, 125, 24
    data = _jpeg(_blocks(height, width), mode, **options)
    random = np.random.default_rng(1)
    boxes = [
        (0, 0, height, width),
        (-7.25, 12.5, height, width),  # shifted beyond two borders
        (height, -width, height, width),  # outside
    ]
    for _ in range(12):
        high, wide = random.integers(5, 47, 2)
        top = random.integers(0, height - high)
        boxes.append((top, random.integers(0, width - wide), high, wide))
    for box in boxes:
        if min(box[2:]) >= 2 * size:
            expected, result, part = _both(data, box, min(box[2:]))
        else:
            expected, result, part = _both(data, box, size)
            assert max(part.shape[:2]) <= max(box[2:]) + 8
        np.testing.assert_allclose(result, expected, atol=0.1, err_msg=box)


@pytest.mark.parametrize(
    ("size", "ratio"), [(80, 1), (50, 2), (25, 4), (12, 8), (5, 8)]
)
def test_large_crops_are_decoded_smaller(size, ratio):
    y, x = np.mgrid[:301, :403].astype(np.float32)
    waves = [np.sin(x / 17), np.cos(y / 23), np.sin((x + y) / 19)]
    pixels = (127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)
    data = _jpeg(pixels, quality=95)
    box = (51, 67, 100, 121)
    expected, result, part = _both(data, box, size)
    # The part, and four pixels at each side.
    more = np.subtract(part.shape[:2], [100 / ratio, 121 / ratio])
    assert np.abs(more).max() <= 10
    difference = np.abs(result - expected).mean()
    assert difference < 4
    if ratio > 1:
        # Half a pixel of the decoded part to one side would be worse.
        moved = np.add(box, [0, ratio / 2, 0, 0])
        shifted = _both(data, moved, size)[0]
        assert difference < 0.7 * np.abs(shifted - expected).mean()


def _batch(source, config):
    plan = progressive.plan_run(config, len(source), 1)
    dataset = pipeline.training_dataset(source, config, plan)
    return next(dataset.as_numpy_iterator())


@pytest.mark.slow
def test_the_pipeline_gives_the_same_images(tiny_config):
    image = Image.fromarray(_blocks(37, 45))
    # Crops are less than twice 24 pixels, so all is at full scale.
    items = [
        _jpeg(_blocks(37, 45, seed), mode)
        for seed, mode in enumerate(("RGB", "L", "CMYK", "RGB", "RGB", "L"))
    ]
    items += [encode(image, "PNG"), encode(image, "BMP")]
    source = sources.EncodedSource(
        items, False, np.arange(8, dtype=np.int64), list("abcdefgh")
    )
    options = (
        "train.batch_size=8,train.stages=1,data.augname=null,"
        "data.transformations=crop|shift|flip,"
        "data.mixup_alpha=0,data.cutmix_alpha=0,data.fast_jpeg="
    )
    (fast, labels), (slow, same_labels) = (
        _batch(source, tiny_config(options + value))
        for value in ("true", "false")
    )
    np.testing.assert_array_equal(labels, same_labels)
    np.testing.assert_allclose(fast, slow, atol=2e-3)
    assert fast.shape == (8, 24, 24, 3) and fast.std() > 0.2


def test_a_jpeg_that_is_cut_short_in_the_crop_is_an_error():
    for other in (_jpeg(_blocks(20, 20), "CMYK"), b"", b"BM and more"):
        assert not preprocessing.can_decode_part(tf.constant(other))
    data = _jpeg(_blocks(93, 125))
    cut = data[: len(data) // 2]
    top, bottom = [0.0, 0.0, 12.0, 50.0], [80.0, 0.0, 12.0, 50.0]
    whole, _ = preprocessing.decode_part(tf.constant(data), top, 12)
    part, _ = preprocessing.decode_part(tf.constant(cut), top, 12)
    np.testing.assert_array_equal(part, whole)
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.decode_part(tf.constant(cut), bottom, 12)
