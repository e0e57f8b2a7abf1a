"""Exact evaluation: every example counts once, whatever the batch size."""

import itertools

import keras
import tensorflow as tf

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

    and there 'top1' and 'top5' say how often any of the labels is found. The
    function is traced once and can be called again as the weights change.
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
        classes = logits.shape[1]
        if labels.shape.rank == 1:
            labels = tf.one_hot(labels, classes)
        else:
            labels = tf.pad(labels, [[0, 0], [0, classes - labels.shape[1]]])
        top1, top5 = losses.hits(labels, logits)
        first = tf.math.top_k(logits, min(5, classes)).indices
        found = tf.gather(labels, first, batch_dims=1)
        loss = losses.cross_entropy(labels, logits, loss_type)
        sums = {
            "top1": top1,
            "top5": top5,
            "cross_entropy": loss * tf.cast(size, tf.float32),
            "found_1": found[:, 0],
            "found_5": found,
            "labels": labels,
        }
        return (
            {k: tf.reduce_sum(tf.cast(v, tf.float64)) for k, v in sums.items()},
            labels,
            logits,
        )

    def evaluate(dataset: tf.data.Dataset) -> dict[str, float]:
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
        result = {
            name: total[name] / images
            for name in ("top1", "top5", "cross_entropy")
        }
        result["images"] = images
        if curve is not None:
            most = min(5, logits.shape[1])
            result |= {
                "precision_1": total["found_1"] / images,
                "precision_5": total["found_5"] / (most * images),
                "recall_1": total["found_1"] / total["labels"],
                "recall_5": total["found_5"] / total["labels"],
                "pr_auc": float(curve.result()),
            }
        return result

    return evaluate
