"""Input pipelines: from a step number to a batch.

Every batch is a pure function of (seed, step), so a resumed run repeats the
batches of an uninterrupted one. Stages differ in numbers only, which are
looked up by step: one pipeline, traced once, serves all of them.

Images in memory are gathered, cropped and resized as a batch. Encoded images
are decoded, cropped and resized one by one, with the random numbers that the
same images in memory would have; only the crop of a JPEG is decoded, at reduced
size if it will be small. Shards are read in their own order: files in random
order, several in turn, and records in random order within windows.
"""

import ml_collections
import numpy as np
import tensorflow as tf

from efficientnetv2.data import (
    decoding,
    mixing,
    policies,
    preprocessing,
    sources,
)
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
    in_parallel,
)
from efficientnetv2.progressive import RunPlan

_CROP_TRIES = 10
# More epochs than a run has, so that no two windows share a seed.
_EPOCHS = 4096
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
    """
    batch = config.train.batch_size
    epoch, position = step // plan.steps_per_epoch, step % plan.steps_per_epoch
    index = position * batch + tf.range(batch, dtype=tf.int64)
    return _shuffled(index, plan.num_images, _seed(config, _SHUFFLE, epoch))


def _shuffled(index: tf.Tensor, count: int, seed: tf.Tensor) -> tf.Tensor:
    """Maps positions to items of a random permutation of `count` items."""
    return tf.raw_ops.RandomIndexShuffle(
        index=index,
        seed=tf.concat([seed, [0]], 0),
        max_index=tf.constant(count - 1, tf.int64),
        rounds=4,
    )


def _boxes(config, uniforms, height: int, width: int):
    """Draws boxes and flips; returns them and the unused draws."""
    names = config.data.transformations
    batch = tf.shape(uniforms)[0]
    size = tf.stack([tf.cast(height, tf.float32), tf.cast(width, tf.float32)])
    boxes = tf.tile(tf.concat([[0.0, 0.0], size], 0)[tf.newaxis], [batch, 1])
    flip, uniforms = uniforms[:, 0], uniforms[:, 1:]
    if "crop" in names:
        tries, uniforms = tf.split(uniforms, [4 * _CROP_TRIES, -1], axis=1)
        boxes = preprocessing.random_crop_boxes(
            tries, height, width, config.data.crop_area_min
        )
    if "shift" in names:
        shift = (2.0 * uniforms[:, :2] - 1.0) * config.data.shift
        boxes += tf.pad(shift * size, [[0, 0], [0, 2]])
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


def rows_of_part(batch: int, part: int, parts: int) -> np.ndarray:
    """Returns the rows of a batch that one of several workers prepares.

    Mixup and CutMix pair the rows from both ends of the batch, or of each of
    its halves; a part holds both rows of each pair, and pairs them alike. The
    batch is a multiple of four times `parts`, if there are several.

    Returns:
        int64 [batch / parts], ascending.
    """
    if parts == 1:
        return np.arange(batch)
    first, last = (batch * number // (4 * parts) for number in (part, part + 1))
    lower = np.arange(first, last)
    half = np.concatenate([lower, (batch // 2 - 1 - lower)[::-1]])
    return np.concatenate([half, half + batch // 2])


class _Schedule:
    """What the steps of a run need, looked up by step."""

    def __init__(
        self,
        config,
        plan: RunPlan,
        skipped: int,
        part: tuple[int, int],
        on_device: bool,
    ):
        self.config, self.plan, self.skipped = config, plan, skipped
        self.on_device, self.antialias = on_device, config.data.antialias
        self.rows = rows_of_part(config.train.batch_size, *part)
        self.mode, self.policy = config.data.normalization, config.data.augname
        self.draws = _number_of_draws(config, self.policy)
        self.stage_of_steps = tf.constant(plan.stage_of_steps)
        stages = plan.stages
        self.sizes = tf.constant([s.image_size for s in stages], tf.int32)
        magnitudes = [stage.randaugment_magnitude for stage in stages]
        self.magnitudes = tf.constant(magnitudes, tf.float64)
        alphas = [[stage.mixup_alpha, stage.cutmix_alpha] for stage in stages]
        self.alphas = tf.constant(alphas, tf.float32)
        self.mixes = any(s.mixup_alpha or s.cutmix_alpha for s in stages)

    def examples(self, step) -> tf.Tensor:
        """Returns the examples of a step: int64 [rows]."""
        indices = epoch_indices(self.config, self.plan, step + self.skipped)
        return tf.gather(indices, self.rows)

    def uniforms(self, step) -> tf.Tensor:
        """Returns the draws of a step: float32 [rows, draws]."""
        draws = tf.random.stateless_uniform(
            [self.config.train.batch_size, self.draws],
            self.seed(_AUGMENT, step),
        )
        return tf.gather(draws, self.rows)

    def seed(self, stream: int, step) -> tf.Tensor:
        return _seed(self.config, stream, step + self.skipped)

    def size(self, step) -> tf.Tensor:
        """Returns the image size of a step, an int32 scalar."""
        return self.sizes[self.stage_of_steps[step]]

    def crop(self, images, uniforms, step):
        """Crops, resizes and flips; returns images and unused draws."""
        height, width = tf.unstack(tf.shape(images)[1:3])
        boxes, flip, uniforms = _boxes(self.config, uniforms, height, width)
        images = preprocessing.crop_resize_flip(
            images, boxes, flip, self.size(step), self.antialias
        )
        return images, uniforms

    def decode_and_crop(self, encoded, uniforms, step):
        """Returns what `crop` does, of one encoded image."""

        def decode_all():
            image = decoding.decode(encoded)
            return self.crop(image[tf.newaxis], uniforms, step)

        def decode_part():
            size, antialias = self.size(step), self.antialias
            turned = decoding.orientation(encoded, decoding.JPEG)
            shape = preprocessing.upright_shape(encoded, turned)
            boxes, flip, unused = _boxes(
                self.config, uniforms, *tf.unstack(shape)
            )
            image, box = preprocessing.decode_part(
                encoded, boxes[0], size, antialias, turned
            )
            images = preprocessing.crop_resize_flip(
                image[tf.newaxis], box[tf.newaxis], flip, size, antialias
            )
            return images, unused

        if not self.config.data.fast_jpeg:
            return decode_all()
        return tf.cond(
            preprocessing.can_decode_part(encoded), decode_part, decode_all
        )

    def quantize(self, images):
        """Rounds cropped images down to what the policies work on."""
        if self.policy not in policies.POLICIES:
            return images
        return tf.cast(tf.clip_by_value(images, 0.0, 255.0), tf.uint8)

    def finish(self, images, labels, uniforms, step):
        """Augments and mixes a batch of images of the stage's size.

        Args:
            images: [batch, size, size, channels], from `quantize`.
            labels: int64 [batch], or float32 [batch, classes].
            uniforms: float32 [batch, ...], unused draws.
            step: int64 scalar.

        Returns:
            Images and labels, or what `device.finish` makes them from.
        """
        config, stage = self.config, self.stage_of_steps[step]
        batch, classes = len(self.rows), config.model.num_classes
        size = self.sizes[stage]
        labels = to_vectors(labels, classes)
        labels.set_shape([batch, classes])
        layers, mixing_parts = [], {}
        if self.policy in policies.POLICIES:
            layers = policies.layers(
                uniforms[:, 1:],
                self.policy,
                self.magnitudes[stage],
                config.data.ra_num_layers,
                config.data.cutout_const,
                config.data.translate_const,
                chosen=uniforms[:, 0] < config.data.aug_prob,
            )
        else:
            images = preprocessing.to_rgb(images)
            images = preprocessing.normalize(images, self.mode)
        if self.policy == "cutout":
            noise = self.seed(_NOISE, step)
            images = mixing.random_cutout(images, uniforms, noise)
        if self.mixes:
            mixing_parts = mixing.draw_parts(
                size,
                self.seed(_MIX, step),
                *tf.unstack(self.alphas[stage]),
                self.rows,
                config.train.batch_size,
                config.data.cutmix_labels,
            )
        if self.on_device:
            images.set_shape([batch, None, None, images.shape[-1]])
            parts = {"images": images, "labels": labels, **mixing_parts}
            if layers:
                parts |= policies.layer_arrays(layers, size, size)
            return parts
        if self.policy in policies.POLICIES:
            images = policies.apply_layers(preprocessing.to_rgb(images), layers)
            images = preprocessing.normalize(images, self.mode)
        if mixing_parts:
            images, labels = mixing.mix(images, labels, **mixing_parts)
        images.set_shape([batch, None, None, 3])
        labels.set_shape([batch, classes])
        return images, labels


def to_vectors(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns labels as float32 [batch, classes].

    They are int64 [batch], or float32 [batch, at most classes].
    """
    if labels.shape.rank == 1:
        return tf.one_hot(labels, classes)
    return tf.pad(labels, [[0, 0], [0, classes - labels.shape[1]]])


def training_dataset(
    source: Source,
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    first_step: int = 0,
    skipped: int = 0,
    part: tuple[int, int] = (0, 1),
    on_device: bool = False,
) -> tf.data.Dataset:
    """Returns the batches of all steps from `first_step` on.

    Args:
        first_step: where to begin, above 0 in a resumed run.
        skipped: batches of data that were left out before: a step takes the
            batch of the step that many steps later, but keeps its own stage.
        part: (number, parts) of a batch, for one of several workers. The
            parts of all workers together are the whole batch; where examples
            come from shards each worker reads shards of its own.
        on_device: leaves augmentation, normalization and mixing to
            `device.finish`, see `device.is_chosen`.

    Returns:
        A dataset of (images, labels): float32 [batch / parts, size, size, 3],
        with the size of the stage, and float32 [batch / parts, classes]. With
        `on_device`, of dicts of tensors whose first axis is the batch.
    """
    schedule = _Schedule(config, plan, skipped, part, on_device)
    if isinstance(source, StreamSource):
        source = source.part(*part)
    steps = tf.data.Dataset.range(first_step, plan.total_steps)
    if isinstance(source, ArraySource):
        dataset = _from_arrays(source, schedule, steps)
    else:
        dataset = _from_encoded(source, schedule, steps, first_step)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _from_arrays(source: ArraySource, schedule: _Schedule, steps):
    in_memory = tf.constant(source.images), tf.constant(source.labels)

    def make_batch(step):
        index = schedule.examples(step)
        images, labels = (tf.gather(each, index) for each in in_memory)
        images, uniforms = schedule.crop(images, schedule.uniforms(step), step)
        images = schedule.quantize(images)
        return schedule.finish(images, labels, uniforms, step)

    return in_parallel(steps, make_batch)


def _from_encoded(
    source: EncodedSource | StreamSource, schedule: _Schedule, steps, first: int
):
    batch = len(schedule.rows)
    draws = in_parallel(
        steps, lambda step: (tf.repeat(step, batch), schedule.uniforms(step))
    ).unbatch()
    if isinstance(source, EncodedSource):
        order = in_parallel(steps, schedule.examples).unbatch()
        examples = in_parallel(order, sources.reader(source))
    else:
        examples = _shuffled_stream(source, schedule, first)

    def load(example, draw):
        (encoded, label), (step, uniforms) = example, draw
        images, uniforms = schedule.decode_and_crop(
            encoded, uniforms[tf.newaxis], step
        )
        return schedule.quantize(images[0]), label, uniforms[0]

    images = in_parallel(tf.data.Dataset.zip(examples, draws), load)
    batches = images.batch(batch, drop_remainder=True)
    return in_parallel(
        tf.data.Dataset.zip(batches, steps),
        lambda parts, step: schedule.finish(*parts, step),
    )


def _shuffled_stream(
    source: StreamSource, schedule: _Schedule, first_step: int
) -> tf.data.Dataset:
    """Returns the examples of all steps from `first_step` on.

    Each epoch has an order of its own: of the files, of which several are
    read in turn, and of the records within a window. Before `first_step`
    records are read and parsed, but not decoded.
    """
    config, plan = schedule.config, schedule.plan
    batch = len(schedule.rows)
    steps = plan.steps_per_epoch
    first_epoch, unused = divmod(first_step + schedule.skipped, steps)
    last_epoch = -(-(plan.total_steps + schedule.skipped) // steps)
    length = steps * batch

    def read_epoch(epoch):
        seed = _seed(config, _SHUFFLE, epoch)
        files = len(source.shards)
        order = _shuffled(tf.range(files, dtype=tf.int64), files, seed)
        dataset = tf.data.Dataset.from_tensor_slices(order)
        dataset = dataset.interleave(
            sources.shard_reader(source),
            cycle_length=min(16, files),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        windows = dataset.batch(config.data.shuffle_buffer).enumerate()

        def shuffle_window(number, window):
            other = tf.stack([0, tf.cast(number * _EPOCHS, tf.int32)])
            return tf.random.experimental.stateless_shuffle(
                window, seed + other
            )

        records = in_parallel(windows, shuffle_window).unbatch()
        dataset = source.examples(records)
        if source.is_good is not None or batch < config.train.batch_size:
            # Others take the places of what is left out, or of what other
            # workers' shards have more.
            dataset = dataset.repeat()
        dataset = dataset.take(length).apply(
            tf.data.experimental.assert_cardinality(length)
        )
        skip = tf.constant(unused * batch, tf.int64)
        return dataset.skip(tf.where(epoch == first_epoch, skip, 0))

    epochs = tf.data.Dataset.range(first_epoch, last_epoch)
    return epochs.flat_map(read_epoch)


def evaluation_dataset(
    source: Source, config: ml_collections.ConfigDict
) -> tf.data.Dataset:
    """Returns every example of a split once, the last batch being smaller.

    Returns:
        A dataset of (images, labels): float32 [batch, eval.isize,
        eval.isize, 3]; int64 [batch], or float32 [batch, classes] of zeros
        and ones.
    """
    mode = config.data.normalization
    size, chosen = config.eval.isize, config.data.eval_transformations
    antialias = config.data.antialias

    def decode(encoded, label):
        image = preprocessing.decode_for_eval(
            encoded, size, mode, chosen, antialias
        )
        return tf.ensure_shape(image, [size, size, 3]), label

    def preprocess(images, labels):
        images = preprocessing.preprocess_for_eval(
            preprocessing.to_rgb(images), size, mode, chosen, antialias
        )
        return tf.ensure_shape(images, [None, size, size, 3]), labels

    batch = config.eval.batch_size
    if isinstance(source, ArraySource):
        arrays = source.images, source.labels
        dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(batch)
        dataset = in_parallel(dataset, preprocess)
    else:
        dataset = in_parallel(sources.encoded_examples(source), decode)
        dataset = dataset.batch(batch)
    return dataset.prefetch(tf.data.AUTOTUNE)
