"""Exact evaluation: every example counts once, whatever the batch size."""

import itertools
from collections.abc import Callable

import keras
import tensorflow as tf

from efficientnetv2.data import pipeline
from efficientnetv2.training import losses


def make_evaluator(
    network: keras.Model,
    parts: int = 1,
    jit_compile: bool = False,
    loss_type: str = "softmax",
):
    """Returns a function from a dataset to metrics.

    Args:
        network: from images to logits.
        parts: parts of a batch to compute side by side, on CPU.
        jit_compile: whether to use XLA.
        loss_type: see `losses.cross_entropy`.

    The function takes batches of images and labels, int64 [batch] or float32
    [batch, classes] of zeros and ones, and returns a dict with 'top1' and
    'top5' in [0, 1], 'cross_entropy' in nats and 'images', the number of
    examples. Vectors of labels, of which an image may have several, add

        precision_1, precision_5  share of right classes among the likeliest
                                  one or five
        recall_1, recall_5        share of the labels that are among these
        pr_auc                    area under the curve of precision by recall
                                  over all pairs of image and class, 200
                                  thresholds

    and there 'top1' and 'top5' say how often any of the labels is found. A
    second argument, if given, is called with each batch: images, labels as
    vectors and logits. The function is traced once and can be called again as
    the weights change.
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
        vectors = pipeline.to_vectors(labels, logits.shape[1])
        found = losses.at_likeliest(vectors, logits)
        loss = losses.cross_entropy(vectors, logits, loss_type)
        sums = {
            "top1": found[:, 0],
            "top5": tf.reduce_max(found, axis=1),
            "cross_entropy": loss * tf.cast(size, tf.float32),
            "found": found,
            "labels": vectors,
        }
        sums = {
            name: tf.reduce_sum(tf.cast(value, tf.float64))
            for name, value in sums.items()
        }
        return sums, vectors, logits

    def evaluate(
        dataset: tf.data.Dataset, observe: Callable | None = None
    ) -> dict[str, float]:
        images, total = 0, {}
        curve = None
        for batch_images, labels in dataset:
            sums, vectors, logits = count(batch_images, labels)
            images += int(labels.shape[0])
            for name, value in sums.items():
                total[name] = total.get(name, 0.0) + float(value)
            if labels.shape.rank == 2:
                curve = curve or keras.metrics.AUC(200, curve="PR")
                curve.update_state(vectors, tf.sigmoid(logits))
            if observe is not None:
                observe(batch_images, vectors, logits)
        result = {
            name: total[name] / images
            for name in ("top1", "top5", "cross_entropy")
        }
        result["images"] = images
        if curve is not None:
            most = min(5, logits.shape[1])
            result |= {
                "precision_1": total["top1"] / images,
                "precision_5": total["found"] / (most * images),
                "recall_1": total["top1"] / total["labels"],
                "recall_5": total["found"] / total["labels"],
                "pr_auc": float(curve.result()),
            }
        return result

    return evaluate
