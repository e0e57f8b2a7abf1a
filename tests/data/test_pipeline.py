"""Batches as functions of the step."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import progressive
from efficientnetv2.data import pipeline


def _plan(config, images=200, epochs=2):
    steps = images // config.train.batch_size
    return progressive.plan_run(config, images, steps * epochs)


def _batches(source, config, first_step=0, epochs=2):
    """Returns all batches from a step on, and the plan."""
    plan = _plan(config, len(source), epochs)
    dataset = pipeline.training_dataset(source, config, plan, first_step)
    return list(dataset.as_numpy_iterator()), plan


def test_an_epoch_sees_no_image_twice(tiny_config):
    def epoch(number, seed=0):
        config = tiny_config(f"train.batch_size=32,train.seed={seed}")
        steps = np.arange(number * 6, number * 6 + 6)
        plan = _plan(config)
        return np.concatenate(
            [pipeline.epoch_indices(config, plan, step) for step in steps]
        )

    for indices in (epoch(0), epoch(1), epoch(0, seed=1)):
        assert len(set(indices)) == 192
        assert indices.min() >= 0 and indices.max() < 200
    assert not np.array_equal(epoch(0), epoch(1))
    assert not np.array_equal(epoch(0), epoch(0, seed=1))


def test_skipped_batches_are_left_out(tiny_config, source):
    # What is mixed follows the step, what is seen the batches of data.
    config = tiny_config(
        "train.stages=1,data.mixup_alpha=0,data.cutmix_alpha=0"
    )
    batches, plan = _batches(source, config)
    skipping = pipeline.training_dataset(
        source, config, plan, first_step=2, skipped=3
    )
    given = list(skipping.as_numpy_iterator())[:7]
    tf.nest.map_structure(np.testing.assert_array_equal, given, batches[5:])


@pytest.mark.parametrize(
    ("augname", "order"),
    [("randaug", "ascending"), ("ft", "ascending"), ("randaug", "random")],
)
def test_a_resumed_pipeline_repeats_the_batches(
    tiny_config, source, augname, order
):
    config = tiny_config(
        f"data.augname={augname},train.stages=3,train.stage_order={order}"
    )
    batches, plan = _batches(source, config)
    assert len(batches) == 12
    resumed, _ = _batches(source, config, first_step=7)
    tf.nest.map_structure(np.testing.assert_array_equal, resumed, batches[7:])
    for step, (images, labels) in enumerate(batches):
        size = plan.stage(step).image_size
        assert images.shape == (32, size, size, 3)
        assert np.abs(images).max() <= 1.01
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "augname", ["autoaug", "ra_aa", "ft_randaug", "effnetv1_randaug"]
)
def test_every_policy_changes_the_images(tiny_config, source, augname):
    options = "train.stages=1,data.mixup_alpha=0,data.cutmix_alpha=0"
    plain, policy = (
        _batches(source, tiny_config(f"{options},data.augname={name}"))[0][0]
        for name in (None, augname)
    )
    assert policy[0].shape == plain[0].shape
    assert np.isfinite(policy[0]).all()
    changed = np.abs(policy[0] - plain[0]).mean(axis=(1, 2, 3)) > 0.01
    assert changed.mean() > 0.3
    np.testing.assert_array_equal(policy[1], plain[1])


def test_without_augmentation_the_images_are_the_examples(tiny_config, source):
    config = tiny_config(
        "data.augname=null,data.transformations=null,train.isize=28,"
        "data.ibase=28,data.mixup_alpha=0,data.cutmix_alpha=0,train.stages=1"
    )
    (images, labels), *_ = _batches(source, config)[0]
    index = pipeline.epoch_indices(config, _plan(config), np.int64(0)).numpy()
    expected = (source.images[index].astype(np.float32) - 128) / 128
    np.testing.assert_allclose(
        images, np.repeat(expected, 3, axis=-1), atol=1e-5
    )
    np.testing.assert_array_equal(labels.argmax(1), source.labels[index])


def test_evaluation_sees_every_example_once_in_order(tiny_config, source):
    config = tiny_config("eval.batch_size=64")
    batches = list(
        pipeline.evaluation_dataset(source, config).as_numpy_iterator()
    )
    assert [len(labels) for _, labels in batches] == [64, 64, 64, 8]
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, source.labels)
    assert batches[0][0].shape == (64, 24, 24, 3)
