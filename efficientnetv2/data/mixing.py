"""Mixup and CutMix on batches, with one-hot labels; fine-tuning's cutout.

As in the released code, an image's partner is the one at the mirrored place
of the batch; with both alphas above zero, Mixup takes the first half of the
batch and CutMix the second. Sources: Zhang et al., arXiv 1710.09412 (Mixup);
Yun et al., arXiv 1905.04899 (CutMix).
"""

import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from efficientnetv2.data import device

# Of an image: 4 for Mixup's weight, 4 for CutMix's area, 2 for the centre.
_DRAWS = 10
# Below this, a Beta(alpha, alpha) draw is 0 or 1 in float32.
_MIN_ALPHA = 1e-6


def symmetric_beta(uniforms, alpha, ops=tnp):
    """Turns uniforms, float32 [..., 4], into draws of Beta(alpha, alpha).

    Exact for every alpha above 0, scalar or [...], without rejection and
    without a Gamma distribution, which XLA has no kernel for. A draw B from
    Beta(a, a) with a = alpha + 1 is the shadow on one axis of a point in a
    disc, by Ulrich's method (Devroye, Non-Uniform Random Variate Generation,
    1986, section IX.3). As Gamma(alpha) is Gamma(alpha + 1) * U ** (1 /
    alpha), the result's logit is that of B plus a Laplace draw over alpha.

    `ops` is a module with NumPy's names: `keras.ops`, `jax.numpy`, ...
    """
    alpha = ops.maximum(alpha, ops.full_like(alpha, _MIN_ALPHA))
    logs = ops.log1p(-uniforms[..., :3])
    radius = ops.sqrt(-ops.expm1(logs[..., 0] * (2.0 / (2.0 * alpha + 1.0))))
    shadow = radius * ops.cos(6.283185307 * uniforms[..., 3])
    # Not 1, whose logit is infinite.
    shadow = shadow * (1.0 - 2.0**-22)
    logit = ops.log1p(shadow) - ops.log1p(-shadow)
    logit = logit + (logs[..., 1] - logs[..., 2]) / alpha
    return 0.5 + 0.5 * ops.tanh(0.5 * logit)


def partners(batch_size, mixup_alpha, cutmix_alpha) -> tuple:
    """Returns the pairing of a batch: partner, in_mixup.

    These are int32 [batch], the index of each image's partner, and bool
    [batch], whether Mixup rather than CutMix is applied.
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


def _cutmix_boxes(size, uniforms: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Draws the rectangle of each image that its partner fills.

    The part of the image that is kept, before the box is cut off at the
    border, is a draw from Beta(alpha, alpha); uniforms: float32 [batch, 6].

    Returns:
        int32 [2, 2, batch]: first and last (excluded) pixel, by axis.
    """
    kept = symmetric_beta(uniforms[:, :4], alpha)
    sizef = tf.cast(size, tf.float32)
    centre = tf.cast(tf.floor(tf.transpose(uniforms[:, 4:]) * sizef), tf.int32)
    half = tf.cast(tf.sqrt(1.0 - kept) * sizef, tf.int32) // 2
    return tf.clip_by_value(tf.stack([centre - half, centre + half]), 0, size)


def draw_parts(
    size,
    seed: tf.Tensor,
    mixup_alpha,
    cutmix_alpha,
    rows,
    whole_batch: int,
    cutmix_labels: str = "image",
) -> dict[str, tf.Tensor]:
    """Draws how a batch, or some rows of one, is mixed.

    Args:
        size: side of the images in pixels.
        seed: int32 [2]; the same seed gives the same draws.
        mixup_alpha, cutmix_alpha: scalars, Python or tensors; 0: off.
        rows: integers [batch], which rows of a larger batch these are; each
            has its partner among them.
        whole_batch: size of that batch.
        cutmix_labels: 'image': a label is mixed by the area of the image's
            own box, as in the paper of CutMix; 'batch': by the mean area of
            all boxes of the whole batch's part, as in the released code.

    Returns:
        'partner', int32 [batch]; 'image_part', float32 [batch], Mixup's part
        of the partner's pixels; 'box', int32 [batch, 2, 2], by axis the first
        pixel and the one after the last that CutMix takes from the partner;
        'label_part', float32 [batch], the part of the partner's label.
    """
    mixup_alpha = tf.cast(mixup_alpha, tf.float32)
    cutmix_alpha = tf.cast(cutmix_alpha, tf.float32)
    # One algorithm, so that every device draws the same.
    shape = [whole_batch, _DRAWS]
    draws = tf.random.stateless_uniform(shape, seed, alg="philox")
    partner, in_mixup = partners(tf.size(rows), mixup_alpha, cutmix_alpha)
    weight = symmetric_beta(tf.gather(draws, rows)[:, :4], mixup_alpha)
    weight = tf.maximum(weight, 1.0 - weight)
    image_part = 1.0 - tf.where(in_mixup, weight, 1.0)

    in_cutmix = tf.cast(~in_mixup & (cutmix_alpha > 0), tf.int32)
    boxes = _cutmix_boxes(size, draws[:, 4:], cutmix_alpha)
    sides = tf.cast(boxes[1] - boxes[0], tf.float32) / tf.cast(size, tf.float32)
    areas = sides[0] * sides[1]
    boxes = tf.gather(boxes, rows, axis=2) * in_cutmix
    if cutmix_labels == "batch":
        _, others = partners(whole_batch, mixup_alpha, cutmix_alpha)
        counted = tf.cast(~others, tf.float32)
        areas = tf.reduce_sum(areas * counted) / tf.maximum(
            tf.reduce_sum(counted), 1.0
        )
    else:
        areas = tf.gather(areas, rows)
    areas *= tf.cast(in_cutmix, tf.float32)
    return {
        "partner": partner,
        "image_part": image_part,
        "box": tf.transpose(boxes, [2, 1, 0]),
        "label_part": tf.where(in_mixup, image_part, areas),
    }


def mix(
    images: tf.Tensor, labels: tf.Tensor, partner: tf.Tensor, **parts: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes a batch by its `draw_parts`.

    Args:
        images: float32, float16 or bfloat16 [batch, size, size, channels].
        labels: float32 [batch, classes].
        partner, **parts: see `draw_parts`.

    Returns:
        Mixed images and labels of the same shapes and types.

    Raises:
        TypeError: for images of whole numbers.
    """
    images = tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
        raise TypeError(
            f"Images of {images.dtype.name} cannot be mixed: normalize them to "
            "float32, float16 or bfloat16 first."
        )
    return device.blend(
        images,
        tf.gather(images, partner),
        labels,
        tf.gather(labels, partner),
        tf.range(tf.shape(images)[1]),
        **parts,
        ops=tf,
    )


def random_cutout(
    images: tf.Tensor, uniforms: tf.Tensor, noise_seed: tf.Tensor
) -> tf.Tensor:
    """Fine-tuning's cutout: a random square becomes noise in [0, 1).

    Args:
        images: float32 [batch, size, size, 3], normalized.
        uniforms: float32 [batch, 2] in [0, 1): centre of the square, whose
            side is half of the image's, cut off at the border.
        noise_seed: int32 [2].
    """
    size = tf.shape(images)[1]
    pad = size // 4
    centre = tf.cast(uniforms * tf.cast(size, tf.float32), tf.int32)
    line = tf.range(size)[tf.newaxis]

    def inside(middle):
        middle = middle[:, tf.newaxis]
        return (line >= middle - pad) & (line < middle + pad)

    rows, columns = inside(centre[:, 0]), inside(centre[:, 1])
    mask = rows[:, :, tf.newaxis, tf.newaxis] & columns[:, None, :, None]
    noise = tf.random.stateless_uniform(tf.shape(images), noise_seed)
    return tf.where(mask, noise, images)
