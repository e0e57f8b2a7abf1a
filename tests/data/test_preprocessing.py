"""Preprocessing against the reference, and the batched random crop."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from efficientnetv2 import config as config_lib
from efficientnetv2.data import mixing, preprocessing


@pytest.mark.parametrize("name", ["big", "fashion"])
@pytest.mark.parametrize(
    ("mode", "size"), [("v2", 32), ("v2", 64), ("v2", 320), ("ft", 64)]
)
def test_evaluation_equals_the_reference(reference, mode, name, size):
    with np.load(reference / "eval_preprocess.npz") as file:
        image = file[f"input/{name}"]
        # There V2's normalization is called the default.
        key = "default" if mode == "v2" else mode
        expected = file[f"{key}/{name}/{size}"]
    result = preprocessing.preprocess_for_eval(image, size, mode).numpy()
    if expected.shape[0] != size:
        result = result[::4, ::4]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    batch = preprocessing.preprocess_for_eval(image[None], size, mode)
    assert batch.shape == (1, size, size, 3)


def test_v1_evaluation_equals_the_reference(reference):
    with np.load(reference / "eval_preprocess.npz") as file:
        expected = file["v1/jpg/64"]
    data = (reference / "big.jpg").read_bytes()
    result = preprocessing.decode_for_eval(data, 64, "v1").numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-2)
    # Decoding first and cropping then differs at the edges only.
    image = tf.io.decode_jpeg(data, channels=3)
    other = preprocessing.preprocess_for_eval(image, 64, "v1").numpy()
    np.testing.assert_allclose(
        other[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=0, atol=0.05
    )


def test_transformations_override_the_rule():
    image = np.arange(40 * 40 * 3).reshape(40, 40, 3).astype(np.uint8)
    plain = preprocessing.preprocess_for_eval(image, 40, "v2", [])
    np.testing.assert_allclose(
        plain, (image.astype(np.float32) - 128) / 128, atol=1e-6
    )
    cropped = preprocessing.preprocess_for_eval(image, 40, "v2", ["crop"])
    assert not np.allclose(plain, cropped)


def test_crop_boxes_stay_inside_and_keep_the_area():
    uniforms = tf.random.stateless_uniform([5000, 40], [1, 2])
    boxes = preprocessing.random_crop_boxes(uniforms, 30, 40, 0.2)
    top, left, height, width = boxes.numpy().T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 30).all() and (left + width <= 40).all()
    assert (height * width >= 0.2 * 1200).all()
    aspect = width / height
    partial = height * width < 1200
    assert ((aspect > 0.70) & (aspect < 1.40))[partial].all()


def _theirs(count, shape, boxes, **options):
    """Draws boxes of TensorFlow: [count, 4]."""

    def draw(index):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [*shape, 3], boxes, seed=tf.stack([7, index]), **options
        )
        return tf.concat([begin[:2], size[:2]], 0)

    numbers = tf.data.Dataset.range(count, output_type=tf.int32)
    return np.stack(list(numbers.map(draw).batch(count)))[0]


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (30, 40)])
def test_crop_boxes_have_tensorflows_distribution(shape):
    count = 30_000
    options = {"area_range": (0.05, 1.0), "min_object_covered": 0.0}
    options["use_image_if_no_bounding_boxes"] = True
    theirs = _theirs(count, shape, tf.zeros([0, 0, 4]), **options)
    uniforms = tf.random.stateless_uniform([count, 40], [1, 2])
    ours = preprocessing.random_crop_boxes(uniforms, *shape, 0.05).numpy()
    # Each column alone, and the joint size and place in coarser bins.
    pairs = [(ours[:, k], theirs[:, k]) for k in range(4)]
    pairs.append([(box // 4) @ [1, 16, 256, 4096] for box in (ours, theirs)])
    for pair in pairs:
        values, inverse = np.unique(np.concatenate(pair), return_inverse=True)
        halves = np.split(inverse, 2)
        counts = np.stack([np.bincount(h, None, len(values)) for h in halves])
        rare = counts.sum(axis=0) < 20
        table = np.c_[counts[:, ~rare], counts[:, rare].sum(axis=1)]
        table = table[:, table.sum(axis=0) > 0]
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_crops_of_v1_are_those_of_its_released_preprocessing():
    """There a box must cover a tenth of the image, in 10 tries."""
    shape, count = (300, 400), 20_000

    theirs = _theirs(
        count,
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        min_object_covered=0.1,
        max_attempts=10,
    )
    uniforms = tf.random.stateless_uniform([count, 40], [1, 2])
    for name in ("efficientnet-b0", "efficientnetv2-b3"):
        config = config_lib.load("imagenet", model_name=name)
        ours = preprocessing.random_crop_boxes(
            uniforms, *shape, config.data.crop_area_min
        ).numpy()
        np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.02)
        np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.02)
    released = config_lib.load("imagenet", "efficientnetv2-s")
    assert released.data.crop_area_min == 0.05
    tuned = config_lib.load("cifar10", model_name="efficientnetv2-s")
    assert tuned.data.transformations == ["flip"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [10, 28, 45])
def test_crop_resize_flip_equals_slice_and_resize(flip, size):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 28, 30, 3)).astype(np.uint8)
    boxes = np.array([[0, 0, 28, 30], [5, 3, 15, 20]], np.float32)
    result = preprocessing.crop_resize_flip(
        images, tf.constant(boxes), tf.constant([flip, flip]), size
    )
    for image, box, ours in zip(images, boxes.astype(int), result, strict=True):
        top, left, height, width = box
        crop = image[top : top + height, left : left + width]
        expected = tf.image.resize(crop, [size, size]).numpy()
        expected = expected[:, ::-1] if flip else expected
        inner = slice(2, -2)  # beyond the box lies the rest of the image
        np.testing.assert_allclose(
            ours.numpy()[inner, inner], expected[inner, inner], atol=2e-2
        )


def test_cutout_erases_a_square_of_half_the_side():
    images = tf.fill([200, 32, 32, 3], -5.0)
    uniforms = tf.random.stateless_uniform([200, 2], [0, 1])
    erased = mixing.random_cutout(images, uniforms, [3, 4]) > -5.0
    areas = np.asarray(erased)[..., 0].sum(axis=(1, 2))
    assert areas.max() == 16 * 16 and areas.min() >= 8 * 8
    again = mixing.random_cutout(images, uniforms, [3, 4]) > -5.0
    np.testing.assert_array_equal(erased, again)
