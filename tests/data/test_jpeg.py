"""JPEGs of which only the crop is decoded."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnetv2 import progressive
from efficientnetv2.data import decoding, pipeline, preprocessing, sources


def _jpeg(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


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
    assert (
        np.abs(np.subtract(part.shape[:2], [100 / ratio, 121 / ratio])).max()
        <= 10
    )
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
    def encode(form):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, form)
        return buffer.getvalue()

    image = Image.fromarray(_blocks(37, 45))
    # Crops are less than twice 24 pixels, so all is at full scale.
    items = [
        _jpeg(_blocks(37, 45, seed), mode)
        for seed, mode in enumerate(("RGB", "L", "CMYK", "RGB", "RGB", "L"))
    ]
    items += [encode("PNG"), encode("BMP")]
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


def test_a_jpeg_truncated_in_the_crop_is_an_error():
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
