"""Augmentation on an accelerator gives the numbers of the host.

Run with both backends: the last test starts the others again with JAX.
"""

import functools
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import engines, progressive
from efficientnetv2.data import device, pipeline, policies, sources
from tests.conftest import assert_same, run_program
from tests.data.test_augment import textures

# Without mixing, whose sums a compiler may round otherwise.
PLAIN = "train.stages=1,data.mixup_alpha=0,data.cutmix_alpha=0"
BACKEND = keras.backend.backend()


def compiled(function):
    """Compiles by XLA; numpy arrays in and out."""
    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    else:
        function = tf.function(function, jit_compile=True)

    def call(arguments):
        return tf.nest.map_structure(np.asarray, function(arguments))

    return call


def test_every_operation_equals_the_hosts():
    size = (37, 64)
    random = np.random.default_rng(0)
    apply = compiled(lambda parts: device.apply_layers(**parts))
    count = 48
    images = textures(count, *size)
    images[::6] = random.integers(0, 256, images[::6].shape)
    images[1] = 77
    images[2, :, :, 1] = 7
    # One level per channel and pixel of it, so that the step of the table of
    # equalization is zero.
    images[3] = np.where(np.arange(size[1])[:, None] < 2, 50, images[3])
    for index, name in enumerate((*policies.RAND_AUGMENT_OPS, None)):
        arguments = [
            0 if name is None else policies.level_to_arg(name, magnitude) or 0
            for magnitude in random.uniform(0, 15, count)
        ]
        layer = policies._layer(
            tf.fill([count], index),
            tf.constant(np.float32(arguments)),
            tf.constant(random.random((count, 3), np.float32)),
        )
        expected = policies.apply_layers(images, [layer]).numpy()
        assert (name is None) == np.array_equal(expected, images)
        parts = policies.layer_arrays([layer], *size)
        result = apply(
            {"images": images, **{k: v.numpy() for k, v in parts.items()}}
        )
        np.testing.assert_array_equal(result, expected, err_msg=str(name))


def batches(source, config, on_device, steps=2):
    plan = progressive.plan_run(config, len(source), 12)
    dataset = pipeline.training_dataset(
        source, config, plan, on_device=on_device
    )
    return list(dataset.take(steps).as_numpy_iterator())


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("data.augname=randaug,data.aug_prob=0.7", np.uint8),
        ("data.augname=effnetv1_ra_aa,data.ra_num_layers=3", np.uint8),
        ("data.augname=randaug,data.ra_num_layers=0", np.uint8),
        ("data.augname=ft", np.float32),
        ("data.augname=null", np.float32),
        ("data.augname=randaug,data.mixup_alpha=0.5", np.uint8),
        ("data.augname=randaug,data.cutmix_alpha=1", np.uint8),
    ],
)
def test_batches_equal_the_hosts(tiny_config, source, options, sent):
    config = tiny_config(f"{PLAIN},{options}")
    finish = compiled(device.batch_maker(config))
    for host, parts in zip(
        batches(source, config, False),
        batches(source, config, True),
        strict=True,
    ):
        assert parts["images"].dtype == sent
        assert parts["images"].shape[0] == len(parts["labels"]) == 32
        images, labels = finish(parts)
        assert images.dtype == labels.dtype == np.float32
        if "mixup" not in options and "v1" not in options:
            np.testing.assert_array_equal(images, host[0])
        # Mixing and division round otherwise.
        np.testing.assert_allclose(images, host[0], atol=2e-6)
        np.testing.assert_allclose(labels, host[1], atol=1e-6)


def test_encoded_images_are_sent_as_uint8(tiny_config):
    images = textures(40, 50, 60)
    encoded = [tf.io.encode_jpeg(image).numpy() for image in images]
    source = sources.EncodedSource(
        encoded, False, np.arange(40) % 10, [str(k) for k in range(10)]
    )
    config = tiny_config(f"{PLAIN},train.batch_size=8,data.ra_num_layers=0")
    (host, _), *_ = batches(source, config, False)
    parts, *_ = batches(source, config, True)
    assert parts["images"].dtype == np.uint8
    result, _ = compiled(device.batch_maker(config))(parts)
    np.testing.assert_array_equal(result, host)


def test_where_a_run_augments(tiny_config):
    def on_device(options, accelerated=True):
        config = tiny_config(f"{PLAIN},train.isize=96,{options}")
        return device.is_chosen(config, accelerated)

    assert on_device("data.augname=randaug")
    assert on_device("data.augname=null,data.mixup_alpha=0.2")
    assert not on_device("data.augname=null")
    assert not on_device("data.augname=ft")
    assert not on_device("train.isize=95")
    assert not on_device("data.augname=randaug", accelerated=False)
    assert not on_device("data.augment_on=host")
    assert on_device("data.augment_on=device,train.isize=24", False)
    assert on_device("data.mix_on_device=true,train.isize=24", False)
    assert not on_device("data.mix_on_device=false")


@pytest.mark.slow
def test_a_run_trains_the_same_on_both(tiny_config, source):
    weights = []
    for where in ("host", "device"):
        config = tiny_config(
            "train.stages=1,data.augname=randaug,data.mixup_alpha=0.4,"
            f"data.cutmix_alpha=1,data.augment_on={where}"
        )
        plan = progressive.plan_run(config, len(source), 12)
        engine = engines.create(config, plan)
        assert engine.augments == (where == "device")
        make_dataset = functools.partial(
            pipeline.training_dataset,
            source,
            config,
            plan,
            on_device=engine.augments,
        )
        batches = iter(engine.dataset(make_dataset))
        for _ in range(3):
            engine.step(next(batches), 0.1)
        weights.append(engine.arrays())
    assert_same(*weights, atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="lowers by JAX")
def test_it_compiles_for_accelerators_without_calling_the_host(
    tiny_config, source
):
    import jax

    config = tiny_config(
        "train.stages=1,data.augname=ra_aa,data.mixup_alpha=1,"
        "data.cutmix_alpha=1"
    )
    (parts,) = batches(source, config, True, steps=1)
    exported = jax.export.export(
        jax.jit(device.batch_maker(config)), platforms=["tpu", "cuda"]
    )(parts)
    assert "callback" not in exported.mlir_module()
    shapes = [each.shape for each in exported.out_avals]
    assert shapes == [(32, 24, 24, 3), (32, 10)]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "jax", reason="starts itself")
def test_on_jax():
    done = run_program(
        *("-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("-k", "operation or trains or compiles", __file__),
        module="pytest",
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
