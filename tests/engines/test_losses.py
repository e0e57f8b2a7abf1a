"""Cross-entropies, hits, and metrics for several labels."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import engines, evaluation

LABELS = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0.25, 0, 0.75]], np.float32)
LOGITS = np.array([[2, -1, 0.5, 0], [0, 3, 1, -2], [1, 0, 2, 4]], np.float32)


def _sigmoid(labels):
    chance = 1 / (1 + np.exp(-LOGITS))
    return -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropies_by_hand(smoothing):
    log_chance = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    shares = LABELS / LABELS.sum(1, keepdims=True)
    shares = shares * (1 - smoothing) + smoothing / 4
    expected = {
        "softmax": -(shares * log_chance).sum(1).mean(),
        "sigmoid": _sigmoid(LABELS * (1 - smoothing) + smoothing / 2).mean(),
        "sigmoid_sum": _sigmoid(LABELS).sum(1).mean(),
    }
    for loss_type, value in expected.items():
        loss = engines.cross_entropy(
            tf.constant(LABELS), tf.constant(LOGITS), loss_type, smoothing
        )
        assert float(loss) == pytest.approx(float(value), rel=1e-5)
    with pytest.raises(ValueError, match="hinge"):
        engines.cross_entropy(LABELS, LOGITS, "hinge")


def test_an_image_without_labels_counts_nothing():
    loss = engines.cross_entropy(tf.zeros([2, 4]), tf.constant(LOGITS[:2]))
    assert float(loss) == 0.0


def test_hits():
    top1, top5 = engines.hits(tf.constant(LABELS), tf.constant(LOGITS))
    np.testing.assert_array_equal(top1, [1, 1, 1])
    wide = tf.concat([LABELS, tf.zeros([3, 4])], 1)
    logits = tf.concat([LOGITS - 9, tf.ones([3, 4])], 1)
    top1, top5 = engines.hits(wide, logits)
    np.testing.assert_array_equal(top1, [0, 0, 0])
    np.testing.assert_array_equal(top5, [1, 1, 1])


def test_metrics_for_several_labels():
    random = np.random.default_rng(0)
    logits = random.normal(size=(90, 12)).astype(np.float32)
    labels = (random.random((90, 12)) < 0.3).astype(np.float32)
    labels[:, 0] = 1
    dataset = tf.data.Dataset.from_tensor_slices(
        (logits[:, None, None], labels)
    )

    def evaluate(dataset):
        # The logits lie in the images.
        return evaluation.evaluate(
            lambda images: images[:, 0, 0], dataset, "sigmoid"
        )

    result = evaluate(dataset.batch(40))
    assert evaluate(dataset.batch(7)) == pytest.approx(result, rel=1e-5)
    order = np.argsort(-logits, axis=1)
    found = np.take_along_axis(labels, order, 1)
    assert result["images"] == 90
    assert result["precision_1"] == pytest.approx(found[:, 0].mean())
    assert result["precision_5"] == pytest.approx(found[:, :5].mean())
    assert result["recall_1"] == pytest.approx(found[:, 0].sum() / labels.sum())
    assert result["recall_5"] == pytest.approx(
        found[:, :5].sum() / labels.sum()
    )
    assert result["top5"] == pytest.approx(found[:, :5].max(1).mean())
    # Average precision, without thresholds in between.
    flat = np.argsort(-logits, axis=None)
    right = labels.reshape(-1)[flat]
    precision = np.cumsum(right) / np.arange(1, right.size + 1)
    average = (precision * right).sum() / right.sum()
    assert result["pr_auc"] == pytest.approx(average, abs=0.02)


def test_class_weights_weigh_images():
    """As Keras' class_weight, whose loss is the mean of weighted images."""
    labels = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    weights = np.float32([2.0, 0.5, 1.0])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    each = -np.log(probabilities[range(4), [0, 1, 1, 2]])
    expected = np.mean(each * weights[[0, 1, 1, 2]])
    value = engines.cross_entropy(labels, logits, class_weights=weights)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    value = engines.cross_entropy(labels, logits, "sigmoid", 0.0, weights)
    two_way = np.where(
        labels > 0, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))
    )
    assert float(value) == pytest.approx(np.mean(two_way * weights), rel=1e-5)
