"""Exact evaluation: every example counts once, whatever the batch size."""

import itertools

import keras
import tensorflow as tf


def make_evaluator(
    network: keras.Model, parts: int = 1, jit_compile: bool = False
):
    """Returns a function from a dataset to metrics.

    Args:
        network: from images to logits.
        parts: parts of a batch to compute side by side, on CPU.
        jit_compile: whether to use XLA.

    The function takes batches of images and integer labels and returns a dict
    with 'top1' and 'top5' in [0, 1], 'cross_entropy' in nats and 'images',
    the number of examples. It is traced once and can be called again as the
    weights change.
    """

    @tf.function(jit_compile=jit_compile, reduce_retracing=True)
    def count(images, labels):
        size = tf.shape(images)[0]
        cuts = [size * part // parts for part in range(parts + 1)]
        logits = tf.concat(
            [
                network(images[first:last], training=False)
                for first, last in itertools.pairwise(cuts)
            ],
            0,
        )
        logits = tf.cast(logits, tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        top1 = tf.equal(tf.argmax(logits, axis=1), labels)
        top5 = tf.math.in_top_k(labels, logits, min(5, logits.shape[1]))
        return (
            tf.math.count_nonzero(top1),
            tf.math.count_nonzero(top5),
            tf.reduce_sum(tf.cast(losses, tf.float64)),
        )

    def evaluate(dataset: tf.data.Dataset) -> dict[str, float]:
        images = top1 = top5 = 0
        loss = 0.0
        for batch_images, labels in dataset:
            counts = count(batch_images, labels)
            images += int(labels.shape[0])
            top1 += int(counts[0])
            top5 += int(counts[1])
            loss += float(counts[2])
        return {
            "top1": top1 / images,
            "top5": top5 / images,
            "cross_entropy": loss / images,
            "images": images,
        }

    return evaluate
