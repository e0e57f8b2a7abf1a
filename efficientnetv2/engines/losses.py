"""Cross-entropies for one and for several labels per image."""

import keras


def cross_entropy(
    labels,
    logits,
    loss_type: str = "softmax",
    label_smoothing: float = 0.0,
    class_weights=None,
):
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

        class_weights: float32 [classes], or None for ones. For softmax an
            image counts by the weights of its labels before smoothing, else
            each class by its own.

    Raises:
        ValueError: for an unknown `loss_type`.
    """
    ops = keras.ops
    if loss_type == "softmax":
        labels = ops.divide_no_nan(
            labels, ops.sum(labels, axis=1, keepdims=True)
        )
        smooth = _smooth(labels, label_smoothing, labels.shape[1])
        losses = ops.categorical_crossentropy(smooth, logits, from_logits=True)
        if class_weights is not None:
            losses = losses * ops.sum(labels * class_weights, axis=1)
        return ops.mean(losses)
    if loss_type == "sigmoid":
        labels = _smooth(labels, label_smoothing, 2)
    if loss_type in ("sigmoid", "sigmoid_sum"):
        losses = ops.binary_crossentropy(labels, logits, from_logits=True)
        if class_weights is not None:
            losses = losses * class_weights
        if loss_type == "sigmoid_sum":
            losses = ops.sum(losses, axis=1)
        return ops.mean(losses)
    raise ValueError(f"Unknown loss_type {loss_type!r}.")


def _smooth(labels, smoothing: float, ways: int):
    if not smoothing:
        return labels
    return labels * (1.0 - smoothing) + smoothing / ways


def hits(labels, logits):
    """Returns whether a label is the most likely class, or among the top 5.

    A row's label is its largest entry, or any of several equally large ones.

    Args:
        labels: float32 [batch, classes].
        logits: float32 [batch, classes].

    Returns:
        (top1, top5): float32 [batch] of zeros and ones.
    """
    ops = keras.ops
    is_label = ops.cast(
        labels >= ops.max(labels, axis=1, keepdims=True), "float32"
    )
    found = at_likeliest(is_label, logits)
    return found[:, 0], ops.max(found, axis=1)


def at_likeliest(labels, logits):
    """Returns the labels of the five most likely classes, in that order.

    Args:
        labels: float32 [batch, classes].
        logits: float32 [batch, classes].

    Returns:
        float32 [batch, 5], or [batch, classes] if there are fewer.
    """
    _, first = keras.ops.top_k(logits, min(5, logits.shape[1]))
    if keras.backend.backend() == "tensorflow":
        # One operation, where `take_along_axis` has thirty.
        import tensorflow as tf

        return tf.gather(labels, first, batch_dims=1)
    return keras.ops.take_along_axis(labels, first, axis=1)
