"""Augmentation: the released code's values, and the policies' statistics."""

import ast
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2.data import ops, policies
from tests.conftest import raises

REFERENCE = pathlib.Path(__file__).parents[1] / "testdata" / "reference"
LEVELS = json.loads((REFERENCE / "randaugment_levels.json").read_text())
with np.load(REFERENCE / "augment_ops.npz") as archive:
    ARRAYS = dict(archive)
INPUTS = ("texture", "flat", "fashion", "low_contrast")
CASES = sorted({key.split("/")[0] for key in ARRAYS} - {"input"})
FUNCTIONS = {k: v for k, v in policies._FUNCTIONS.items() if k != "Cutout"}


def parse(case):
    """'Rotate(12.0)' as ('Rotate', (12.0,))."""
    name, argument = re.fullmatch(r"(\w+)\((.*)\)", case).groups()
    return name, (ast.literal_eval(argument),) if argument else ()


def vector(values):
    dtype = tf.float32 if isinstance(values[0], float) else tf.int32
    return tf.constant(values, dtype)


def textures(count, height=24, width=20, seed=0):
    """Smooth random images, uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 256, [count, 5, 5, 3]).astype(np.float32)
    images = tf.image.resize(coarse, [height, width]).numpy()
    images += rng.uniform(-20, 20, images.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def apply(name, images, *arguments):
    """One operation on numpy images."""
    return FUNCTIONS[name](tf.constant(images), *arguments).numpy()


def uniforms(count, draws, seed=0):
    return tf.random.stateless_uniform([count, draws], [seed, 1])


def uniforms_for(name, sign=0.0, y=0.0, x=0.0):
    """Draws of one RandAugment layer that choose the operation `name`."""
    index = policies.RAND_AUGMENT_OPS.index(name)
    return [(index + 0.5) / len(policies.RAND_AUGMENT_OPS), sign, y, x]


def test_reference_covers_every_operation_but_cutout():
    assert {parse(case)[0] for case in CASES} == set(FUNCTIONS)
    assert list(policies._FUNCTIONS) == list(policies.RAND_AUGMENT_OPS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operation_equals_reference(name):
    cases = [case for case in CASES if parse(case)[0] == name]
    arguments = [parse(case)[1] for case in cases]
    # Traced without any shape, as in a pipeline with ramped image sizes.
    spec = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
    if arguments[0]:
        spec.append(tf.TensorSpec([None], vector(arguments[0]).dtype))
    function = tf.function(FUNCTIONS[name], input_signature=spec)
    for image in INPUTS:
        batch = np.stack([ARRAYS[f"input/{image}"]] * len(cases))
        per_image = [vector(values) for values in zip(*arguments, strict=True)]
        expected = np.stack([ARRAYS[f"{case}/{image}"] for case in cases])
        np.testing.assert_array_equal(function(batch, *per_image), expected)
        for row, values in enumerate(arguments):
            result = apply(name, batch[:1], *values)
            np.testing.assert_array_equal(result[0], expected[row])
        empty = function(batch[:0], *(values[:0] for values in per_image))
        assert empty.shape == batch[:0].shape


def test_posterize_outside_one_to_eight_bits():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    for bits in (0, -1, 9, 10):
        np.testing.assert_array_equal(
            apply("Posterize", images, bits), images & 128
        )
    np.testing.assert_array_equal(apply("Posterize", images, 8), images)


@pytest.mark.parametrize(
    "threshold, same_as", [(256, 0), (384, 128), (512, 0), (281, 25)]
)
def test_solarize_threshold_wraps_at_256(threshold, same_as):
    images = textures(2)
    np.testing.assert_array_equal(
        apply("Solarize", images, threshold), apply("Solarize", images, same_as)
    )
    np.testing.assert_array_equal(
        apply("Solarize", images, same_as),
        np.where(images < same_as, images, 255 - images),
    )


@pytest.mark.parametrize("addition", [-200, -7, 0, 40, 255])
def test_solarize_add_clips(addition):
    images = textures(2)
    added = np.clip(images.astype(int) + addition, 0, 255)
    np.testing.assert_array_equal(
        apply("SolarizeAdd", images, addition),
        np.where(images < 128, added, images),
    )


def test_blending_factors_zero_and_one():
    images = textures(3)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        np.testing.assert_array_equal(apply(name, images, 1.0), images)
    assert not apply("Brightness", images, 0.0).any()
    grey = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images))
    np.testing.assert_array_equal(apply("Color", images, 0.0), grey)
    level = images.shape[1] * images.shape[2] // 256
    assert (apply("Contrast", images, 0.0) == level).all()


def test_color_equals_tensorflow_on_random_colours():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, [4, 256, 256, 3]).astype(np.uint8)
    grey = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images))
    result = tf.function(ops.color)(images, 0.0)
    np.testing.assert_array_equal(result, grey)


def test_equalize_leaves_small_counts():
    # 254 pixels below the brightest level: the step of the table is 0.
    images = np.full([1, 16, 16, 3], 200, np.uint8)
    images.reshape(-1, 3)[:254] = np.arange(254)[:, None] // 2
    np.testing.assert_array_equal(apply("Equalize", images), images)
    images.reshape(-1, 3)[:255] = np.arange(255)[:, None] // 2
    assert (apply("Equalize", images) != images).any()


def test_cutout_covers_the_square_about_its_centre():
    images = textures(4, 24, 20)
    centres = np.array([[12, 10], [0, 0], [23, 19], [5, 18]], np.int32)
    pads = np.array([4, 3, 50, 0], np.int32)
    result = ops.cutout(tf.constant(images), pads, centres).numpy()
    for image, got, (y, x), pad in zip(
        images, result, centres, pads, strict=True
    ):
        expected = image.copy()
        rows = slice(max(0, y - pad), y + pad)
        columns = slice(max(0, x - pad), x + pad)
        expected[rows, columns] = 128
        np.testing.assert_array_equal(got, expected)


def affine(name, argument, height, width):
    """The coefficients that the released code hands to the kernel."""
    if name == "Rotate":
        radians = argument * np.float32(np.pi / 180)
        cos, sin = tf.cos(radians).numpy(), tf.sin(radians).numpy()
        right, bottom = np.float32(width - 1), np.float32(height - 1)
        x_offset = (right - (cos * right - sin * bottom)) / np.float32(2)
        y_offset = (bottom - (sin * right + cos * bottom)) / np.float32(2)
        return [cos, -sin, x_offset, sin, cos, y_offset, 0, 0]
    position = {"ShearX": 1, "ShearY": 3, "TranslateX": 2, "TranslateY": 5}
    coefficients = [1, 0, 0, 0, 1, 0, 0, 0]
    coefficients[position[name]] = argument
    return coefficients


@pytest.mark.parametrize("name", policies._SIGNED)
def test_geometric_operation_equals_the_projective_kernel(name):
    rng = np.random.default_rng(5)
    count, height, width = 24, 119, 374
    images = rng.integers(0, 256, [count, height, width, 3]).astype(np.uint8)
    # Slopes and offsets whose positions fall between two pixels test the
    # rounding of ties.
    steps = rng.choice([0.1, 0.15, 0.25, 0.27, 0.3, 0.45, 0.5], count)
    scale = {"Rotate": 90, "ShearX": 1, "ShearY": 1}.get(name, 50)
    steps = (steps * rng.choice([-1, 1], count) * scale).astype(np.float32)
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=np.array(
            [affine(name, step, height, width) for step in steps], np.float32
        ),
        output_shape=[height, width],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=128.0,
    )
    # As a graph, because the graph optimizer reorders sums where it can.
    result = tf.function(FUNCTIONS[name])(
        tf.constant(images), tf.constant(steps)
    )
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("magnitude", LEVELS)
def test_levels_equal_reference(magnitude):
    for name, expected in LEVELS[magnitude].items():
        number = policies.level_to_arg(name, float(magnitude))
        assert (number is None) if not expected else [number] == expected
        for dtype in (tf.float32, tf.float64):
            level = tf.constant(float(magnitude), dtype)
            assert policies.level_to_arg(name, level) == number


def test_level_of_unknown_operation_names_the_known():
    with pytest.raises(ValueError, match="Invrt.*Invert"):
        policies.level_to_arg("Invrt", 5)


def test_one_trace_serves_all_magnitudes_and_sizes():
    traces = []

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8),
            tf.TensorSpec([None, 8]),
            tf.TensorSpec([]),
        ]
    )
    def traced(images, draws, magnitude):
        traces.append(1)
        return policies.distort(images, draws, "randaug", magnitude)

    for size, magnitude in ((32, 5), (40, 9), (28, 10), (33, 12.5), (32, 15)):
        images = textures(16, size, size - 3)
        draws = uniforms(16, 8, seed=size)
        np.testing.assert_array_equal(
            traced(images, draws, float(magnitude)),
            policies.distort(images, draws, "randaug", magnitude),
        )
    assert traced(images[:0], draws[:0], 5.0).shape == (0, 32, 29, 3)
    assert len(traces) == 1


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_rand_augment_layer_applies_its_operation(name):
    images = textures(2)
    draws = tf.constant(
        [uniforms_for(name, sign=0.1), uniforms_for(name, sign=0.9)]
    )
    result = policies.distort(images, draws, "randaug", 9, 1)
    argument = policies.level_to_arg(name, 9)
    if argument is None:
        expected = apply(name, images)
    elif name in policies._SIGNED:
        expected = apply(name, images, tf.constant([-argument, argument]))
    else:
        expected = apply(name, images, argument)
    np.testing.assert_array_equal(result, expected)


def test_rand_augment_cutout_centre():
    images = textures(1, 24, 20)
    draws = tf.constant([uniforms_for("Cutout", y=0.5, x=1 - 2**-24)])
    result = policies.distort(images, draws, "randaug", 2, 1)
    expected = images.copy()
    expected[:, 12 - 8 : 12 + 8, 19 - 8 :] = 128
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", policies.POLICIES)
def test_policies_are_functions_of_an_images_own_uniforms(name):
    images = textures(96)
    draws = uniforms(96, policies.draws(name), seed=2)
    distort = tf.function(lambda i, u: policies.distort(i, u, name, 9))
    whole = distort(images, draws).numpy()
    assert whole.dtype == np.uint8 and whole.shape == images.shape
    assert (whole != images).any(axis=(1, 2, 3)).mean() > 0.6
    np.testing.assert_array_equal(distort(images, draws), whole)
    dataset = tf.data.Dataset.from_tensor_slices((images, draws)).batch(40)
    dataset = dataset.map(lambda i, u: policies.distort(i, u, name, 9))
    assert dataset.element_spec.shape.as_list() == [None, 24, 20, 3]
    batched = np.concatenate(list(dataset.as_numpy_iterator()))
    np.testing.assert_array_equal(batched, whole)
    order = np.random.default_rng(0).permutation(96)
    shuffled = distort(images[order], tf.gather(draws, order))
    np.testing.assert_array_equal(shuffled, whole[order])
    for index in range(5):
        alone = slice(index, index + 1)
        result = policies.distort(images[alone], draws[alone], name, 9)
        np.testing.assert_array_equal(result, whole[alone])


def test_operations_and_signs_are_equally_likely():
    count, kinds = 20_000, len(policies.RAND_AUGMENT_OPS)
    draws = uniforms(count, policies.draws("randaug", 2), seed=7)
    first, second = policies.layers(draws, "randaug", 10, 2)
    # Layers are independent: so are pairs of operations. The bound is the
    # 99.9th percentile of chi-square at 255 degrees of freedom.
    pairs = first.operation * kinds + second.operation
    counts = np.bincount(pairs, minlength=kinds**2)
    expected = count / kinds**2
    assert ((counts - expected) ** 2 / expected).sum() < 330.5
    rotated = first.operation == policies.RAND_AUGMENT_OPS.index("Rotate")
    negative = (first.argument[rotated] < 0).numpy()
    assert abs(negative.mean() - 0.5) < 1.65 / np.sqrt(negative.size)


def test_no_layers_and_no_magnitude():
    images = textures(4)
    np.testing.assert_array_equal(
        policies.distort(images, uniforms(4, 0), "randaug", 10, 0), images
    )
    # Operations that have no strength of their own still act at magnitude 0.
    draws = tf.constant([uniforms_for("Invert"), uniforms_for("ShearX")] * 2)
    result = policies.distort(images, draws, "randaug", 0, 1).numpy()
    np.testing.assert_array_equal(result[::2], 255 - images[::2])
    np.testing.assert_array_equal(result[1::2], images[1::2])


def sub_policy_by_hand(image, sub_policy, draws):
    """AutoAugment of one image, operation by operation."""
    image = image[None]
    for (name, probability, level), (fire, sign, *_) in zip(
        sub_policy, draws, strict=True
    ):
        if fire >= probability:
            continue
        argument = policies.level_to_arg(name, level, 100, 250)
        if argument is None:
            image = apply(name, image)
        elif name in policies._SIGNED and sign < 0.5:
            image = apply(name, image, -argument)
        else:
            image = apply(name, image, argument)
    return image[0]


def test_auto_augment_applies_the_sub_policies():
    sub_policies = policies.AUTO_AUGMENT
    assert len(sub_policies) == 25
    count = 3 * len(sub_policies)
    images = textures(count)
    draws = np.array(uniforms(count, policies.draws("autoaug"), seed=4))
    draws[:, 0] = (np.arange(count) % 25 + 0.5) / 25
    result = policies.distort(images, draws, "autoaug")
    for index in range(count):
        chosen, own = sub_policies[index % 25], draws[index, 1:].reshape(2, -1)
        expected = sub_policy_by_hand(images[index], chosen, own)
        np.testing.assert_array_equal(result[index], expected)


def test_auto_augment_takes_sub_policies_of_any_length_and_cutout():
    policy = [
        [("Cutout", 1.0, 1)],
        [("Invert", 1.0, 0), ("Invert", 1.0, 0), ("Cutout", 1.0, 0.5)],
    ]
    images = textures(2, 30, 30)
    assert policies.draws(policy) == 13
    draws = np.full([2, 13], 0.5, np.float32)
    draws[0, 0] = 0.0
    result = policies.distort(images, draws, policy)
    expected = images.copy()
    expected[0, 5:25, 5:25] = 128
    expected[1, 10:20, 10:20] = 128
    np.testing.assert_array_equal(result, expected)


def test_ra_aa_uses_both_policies():
    images = textures(64)
    draws = uniforms(64, policies.draws("ra_aa"), seed=6)
    result = policies.distort(images, draws, "ra_aa", 9, 2, 20, 30)
    rand = policies.distort(images, draws[:, 1:9], "randaug", 9, 2, 20, 30)
    auto = policies.distort(images, draws[:, 1:10], "autoaug")
    expected = np.where(draws[:, 0, None, None, None] < 0.5, auto, rand)
    np.testing.assert_array_equal(result, expected)


def test_unknown_names_name_the_known():
    images, draws = textures(1), uniforms(1, 8)
    with raises(ValueError, "randaugment", "randaug, autoaug, ra_aa"):
        policies.distort(images, draws, "randaugment")
    with pytest.raises(ValueError, match="Blur.*Sharpness"):
        policies.distort(images, uniforms(1, 5), [[("Blur", 1.0, 1)]])


def test_inputs_of_another_shape_or_dtype_are_refused():
    images = textures(2)
    with pytest.raises(ValueError, match=r"uniforms must be \[batch, 8\]"):
        policies.distort(images, uniforms(2, 9), "randaug")
    with pytest.raises(ValueError, match="images must be uint8"):
        policies.distort(images / 255.0, uniforms(2, 8), "randaug")
    with pytest.raises(ValueError, match="images must be uint8"):
        policies.distort(images[0], uniforms(2, 8), "randaug")
