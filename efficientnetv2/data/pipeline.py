"""Input pipelines: from a step number to a batch.

Every batch is a pure function of (seed, step), so a resumed run repeats the
batches of an uninterrupted one. Stages differ in numbers only, which are
looked up by step: one pipeline, traced once, serves all of them.
"""

from collections.abc import Sequence

import ml_collections
import numpy as np
import tensorflow as tf

from efficientnetv2.config import RunPlan
from efficientnetv2.data import mixing, preprocessing
from efficientnetv2.data.augment import policies
from efficientnetv2.data.sources import ArraySource
from efficientnetv2.training.progressive import Stage

_CROP_TRIES = 10
# Streams of random numbers that must not be the same.
_SHUFFLE, _AUGMENT, _MIX, _NOISE = range(4)


def _seed(config, stream: int, counter) -> tf.Tensor:
    """Returns an int32 [2] seed for a stream of random numbers."""
    base = (config.train.seed * 4 + stream) % (2**31 - 1)
    return tf.stack([tf.constant(base, tf.int32), tf.cast(counter, tf.int32)])


def epoch_indices(
    config: ml_collections.ConfigDict, plan: RunPlan, step
) -> tf.Tensor:
    """Returns the examples of a step: int64 [batch_size].

    Within an epoch no example is seen twice.

    Args:
        config: of the run.
        plan: of the run.
        step: int64 scalar.
    """
    batch = config.train.batch_size
    epoch, position = step // plan.steps_per_epoch, step % plan.steps_per_epoch
    return tf.raw_ops.RandomIndexShuffle(
        index=position * batch + tf.range(batch, dtype=tf.int64),
        seed=tf.concat([_seed(config, _SHUFFLE, epoch), [0]], 0),
        max_index=tf.constant(plan.num_images - 1, tf.int64),
        rounds=4,
    )


def _boxes(config, uniforms, height: int, width: int):
    """Draws boxes and flips; returns them and the unused draws."""
    names = config.data.transformations
    batch = tf.shape(uniforms)[0]
    boxes = tf.tile([[0.0, 0.0, height, width]], [batch, 1])
    flip, uniforms = uniforms[:, 0], uniforms[:, 1:]
    if "crop" in names:
        boxes = preprocessing.random_crop_boxes(
            uniforms[:, : 4 * _CROP_TRIES],
            height,
            width,
            config.data.crop_area_min,
        )
        uniforms = uniforms[:, 4 * _CROP_TRIES :]
    if "shift" in names:
        shift = (2.0 * uniforms[:, :2] - 1.0) * config.data.shift
        shift *= tf.constant([height, width], tf.float32)
        boxes += tf.pad(shift, [[0, 0], [0, 2]])
        uniforms = uniforms[:, 2:]
    flip = (flip < 0.5) if "flip" in names else tf.zeros([batch], tf.bool)
    return boxes, flip, uniforms


def _number_of_draws(config, policy: str | None) -> int:
    names = config.data.transformations
    draws = 1 + 4 * _CROP_TRIES * ("crop" in names) + 2 * ("shift" in names)
    if policy == "cutout":
        return draws + 2
    if policy:
        draws += 1 + policies.draws(policy, config.data.ra_num_layers)
    return draws


def _augment(config, images, uniforms, policy, mode, magnitude, noise_seed):
    """Applies the policy to float images in [0, 255] and normalizes."""
    if policy in (None, "cutout"):
        images = preprocessing.normalize(images, mode)
        if policy == "cutout":
            images = preprocessing.random_cutout(images, uniforms, noise_seed)
        return images
    images = tf.cast(tf.clip_by_value(images, 0.0, 255.0), tf.uint8)
    distorted = policies.distort(
        images,
        uniforms[:, 1:],
        policy,
        magnitude,
        num_layers=config.data.ra_num_layers,
        cutout_const=config.data.cutout_const,
        translate_const=config.data.translate_const,
    )
    if config.data.aug_prob < 1.0:
        chosen = uniforms[:, 0] < config.data.aug_prob
        distorted = tf.where(chosen[:, None, None, None], distorted, images)
    return preprocessing.normalize(distorted, mode)


def training_dataset(
    source: ArraySource,
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    stages: Sequence[Stage],
    first_step: int = 0,
) -> tf.data.Dataset:
    """Returns the batches of all steps from `first_step` on.

    Args:
        source: the training split.
        config: of the run.
        plan: of the run.
        stages: of the run.
        first_step: where to begin, above 0 in a resumed run.

    Returns:
        A dataset of (images, labels): float32 [batch, size, size, 3], with
        the size of the stage, and float32 [batch, classes].
    """
    mode, policy = preprocessing.parse_augname(config.data.augname)
    draws = _number_of_draws(config, policy)
    batch = config.train.batch_size
    images_in_memory = tf.constant(source.images)
    labels_in_memory = tf.constant(source.labels)
    height, width = source.images.shape[1:3]
    ends = tf.constant([stage.last_step for stage in stages], tf.int64)
    sizes = tf.constant([stage.image_size for stage in stages], tf.int32)
    magnitudes = tf.constant(
        [stage.randaugment_magnitude for stage in stages], tf.float64
    )
    alphas = tf.constant(
        [[stage.mixup_alpha, stage.cutmix_alpha] for stage in stages],
        tf.float32,
    )
    mixes = bool(np.any(alphas.numpy() > 0))

    @tf.autograph.experimental.do_not_convert
    def make_batch(step):
        stage = tf.searchsorted(ends, [step], side="right")[0]
        index = epoch_indices(config, plan, step)
        images = tf.gather(images_in_memory, index)
        labels = tf.one_hot(
            tf.gather(labels_in_memory, index), config.model.num_classes
        )
        uniforms = tf.random.stateless_uniform(
            [batch, draws], _seed(config, _AUGMENT, step)
        )
        boxes, flip, uniforms = _boxes(config, uniforms, height, width)
        images = preprocessing.crop_resize_flip(
            images, boxes, flip, sizes[stage]
        )
        images = _augment(
            config,
            preprocessing.to_rgb(images),
            uniforms,
            policy,
            mode,
            magnitudes[stage],
            _seed(config, _NOISE, step),
        )
        if mixes:
            images, labels = mixing.mix(
                images,
                labels,
                _seed(config, _MIX, step),
                alphas[stage, 0],
                alphas[stage, 1],
            )
        images.set_shape([batch, None, None, 3])
        labels.set_shape([batch, config.model.num_classes])
        return images, labels

    dataset = tf.data.Dataset.range(first_step, plan.total_steps)
    dataset = dataset.map(
        make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(
    source: ArraySource, config: ml_collections.ConfigDict
) -> tf.data.Dataset:
    """Returns every example of a split once, the last batch being smaller.

    Returns:
        A dataset of (images, labels): float32 [batch, eval.isize,
        eval.isize, 3] and int64 [batch].
    """
    mode, _ = preprocessing.parse_augname(config.data.augname)

    @tf.autograph.experimental.do_not_convert
    def preprocess(images, labels):
        images = preprocessing.preprocess_for_eval(
            preprocessing.to_rgb(images),
            config.eval.isize,
            mode,
            config.data.eval_transformations,
        )
        images.set_shape([None, config.eval.isize, config.eval.isize, 3])
        return images, labels

    dataset = tf.data.Dataset.from_tensor_slices((source.images, source.labels))
    dataset = dataset.batch(config.eval.batch_size)
    dataset = dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)
