"""Mixup and CutMix on batches, with one-hot labels.

As in the released code, an image's partner is the one at the mirrored place
of the batch; with both alphas above zero, Mixup takes the first half of the
batch and CutMix the second. Sources: Zhang et al., arXiv 1710.09412 (Mixup);
Yun et al., arXiv 1905.04899 (CutMix).
"""

import tensorflow as tf

# Below this, a Beta(alpha, alpha) draw is 0 or 1 in float32.
_MIN_ALPHA = 1e-3


def _beta(shape, seed: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Draws from Beta(alpha, alpha), float32 of the given shape."""
    seed = tf.convert_to_tensor(seed)
    alpha = tf.maximum(tf.cast(alpha, tf.float32), _MIN_ALPHA)
    first = tf.random.stateless_gamma(shape, seed, alpha)
    second = tf.random.stateless_gamma(shape, seed + [0, 1 << 20], alpha)
    total = first + second
    # Both draws underflow for a small alpha: then the coin decides.
    coin = tf.random.stateless_uniform(shape, seed + [0, 2 << 20])
    return tf.where(total > 0, first / tf.maximum(total, 1e-37), tf.round(coin))


def partners(batch_size, mixup_alpha, cutmix_alpha) -> tuple:
    """Returns (partner, in_mixup): the pairing of a batch.

    Args:
        batch_size: scalar integer.
        mixup_alpha, cutmix_alpha: scalars, Python or tensors.

    Returns:
        int32 [batch], the index of each image's partner, and bool [batch],
        whether Mixup rather than CutMix is applied.
    """
    has_mixup = tf.cast(mixup_alpha, tf.float32) > 0
    has_cutmix = tf.cast(cutmix_alpha, tf.float32) > 0
    split = tf.where(
        has_mixup, tf.where(has_cutmix, batch_size // 2, batch_size), 0
    )
    index = tf.range(batch_size)
    in_mixup = index < split
    partner = tf.where(
        in_mixup, split - 1 - index, batch_size - 1 - (index - split)
    )
    return partner, in_mixup


def cutmix_masks(
    size, seed: tf.Tensor, alpha: tf.Tensor, batch_size, rows=None
) -> tf.Tensor:
    """Draws one rectangle an image: 1 where the partner shows.

    Args:
        size: side of the images in pixels.
        seed: int32 [2].
        alpha: scalar above 0.
        batch_size: scalar integer.
        rows: int64 [rows], of which masks are wanted; None: all.

    Returns:
        float32 [batch or rows, size, size, 1].
    """
    seed = tf.convert_to_tensor(seed)
    rows = tf.range(batch_size) if rows is None else rows
    centre = tf.random.stateless_uniform([2, batch_size], seed + [1, 0])
    centre = tf.gather(centre, rows, axis=1)
    sizef = tf.cast(size, tf.float32)
    centre = tf.cast(tf.floor(centre * sizef), tf.int32)
    kept = tf.gather(_beta([batch_size], seed + [2, 0], alpha), rows)
    side = tf.cast(tf.sqrt(1.0 - kept) * sizef, tf.int32)
    low = tf.clip_by_value(centre - side // 2, 0, size)
    high = tf.clip_by_value(centre + side // 2, 0, size)
    line = tf.range(size)[tf.newaxis, tf.newaxis]
    inside = (line >= low[..., tf.newaxis]) & (line < high[..., tf.newaxis])
    mask = inside[0][:, :, tf.newaxis] & inside[1][:, tf.newaxis, :]
    return tf.cast(mask, tf.float32)[..., tf.newaxis]


def mix(
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    mixup_alpha,
    cutmix_alpha,
    rows=None,
    whole_batch: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies Mixup and CutMix to a batch, or to some rows of one.

    Args:
        images: float32 [batch, size, size, channels].
        labels: float32 [batch, classes], one-hot; each row sums to one
            before and after.
        seed: int32 [2]; the same seed gives the same batch.
        mixup_alpha, cutmix_alpha: scalars, Python or tensors; 0: off.
        rows: int64 [batch], which rows of a larger batch these are; each has
            its partner among them. None: all.
        whole_batch: size of that batch.

    Returns:
        Mixed images and labels of the same shapes.
    """
    batch_size, size = tf.shape(images)[0], tf.shape(images)[1]
    if rows is None:
        rows, whole_batch = tf.range(batch_size), batch_size
    partner, in_mixup = partners(batch_size, mixup_alpha, cutmix_alpha)
    weight = tf.gather(_beta([whole_batch], seed, mixup_alpha), rows)
    weight = tf.maximum(weight, 1.0 - weight)
    weight = tf.where(in_mixup, weight, 1.0)[:, None, None, None]

    mask = cutmix_masks(size, seed, cutmix_alpha, whole_batch, rows)
    in_cutmix = ~in_mixup & (tf.cast(cutmix_alpha, tf.float32) > 0)
    mask *= tf.cast(in_cutmix, tf.float32)[:, None, None, None]

    # Part of the partner at each pixel; one of both terms is always zero.
    part = (1.0 - weight) + mask
    images += (tf.gather(images, partner) - images) * part
    label_part = tf.reduce_mean(part * tf.ones_like(mask), axis=[1, 2])
    labels += (tf.gather(labels, partner) - labels) * label_part
    return images, labels
