"""Cross-entropies for one and for several labels an image."""

import tensorflow as tf


def cross_entropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    loss_type: str = "softmax",
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Returns the mean over the batch, in nats.

    Args:
        labels: float32 [batch, classes], at least 0. Rows of several ones are
            several labels; mixed rows have a sum of 1.
        logits: float32 [batch, classes].
        loss_type: 'softmax', where a row's labels share a probability of 1;
            'sigmoid', the mean over the classes of a two-way cross-entropy
            each; or 'sigmoid_sum', their sum.
        label_smoothing: in [0, 1); towards equal shares of all classes for
            softmax, towards one half for sigmoid, none for sigmoid_sum.

    Raises:
        ValueError: for an unknown `loss_type`.
    """
    if loss_type == "softmax":
        labels = tf.math.divide_no_nan(
            labels, tf.reduce_sum(labels, axis=1, keepdims=True)
        )
        labels = _smooth(labels, label_smoothing, labels.shape[1])
        return tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(labels, logits)
        )
    if loss_type == "sigmoid":
        labels = _smooth(labels, label_smoothing, 2)
        return tf.reduce_mean(
            tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        )
    if loss_type == "sigmoid_sum":
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        return tf.reduce_mean(tf.reduce_sum(losses, axis=1))
    raise ValueError(f"Unknown loss_type {loss_type!r}.")


def _smooth(labels, smoothing: float, ways: int):
    if not smoothing:
        return labels
    return labels * (1.0 - smoothing) + smoothing / ways


def hits(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether a label is the likeliest class, or among the first 5.

    A row's label is its largest entry, or any of them where several are equal.

    Args:
        labels: float32 [batch, classes].
        logits: float32 [batch, classes].

    Returns:
        (top1, top5): float32 [batch] of zeros and ones.
    """
    is_label = tf.cast(
        labels >= tf.reduce_max(labels, axis=1, keepdims=True), tf.float32
    )
    found = at_likeliest(is_label, logits)
    return found[:, 0], tf.reduce_max(found, axis=1)


def at_likeliest(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the labels of the five likeliest classes, likeliest first.

    Args:
        labels: float32 [batch, classes].
        logits: float32 [batch, classes].

    Returns:
        float32 [batch, 5], or [batch, classes] if there are fewer.
    """
    first = tf.math.top_k(logits, min(5, logits.shape[1])).indices
    return tf.gather(labels, first, batch_dims=1)
