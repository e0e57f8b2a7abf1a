"""Exact evaluation: every example counts once, whatever the batch size."""

import statistics
import time
from collections.abc import Callable

import keras
import ml_collections
import numpy as np

from efficientnetv2 import checkpoints, engines, progress
from efficientnetv2.data import faults, fingerprint, pipeline, sources
from efficientnetv2.models import weights
from efficientnetv2.runs import Run, Splits

# Batches per measurement of inference speed, and number of measurements.
_WARM_UP, _BATCHES, _ROUNDS = 3, 20, 7


def evaluate(
    logits: Callable[[np.ndarray], np.ndarray],
    dataset,
    loss_type: str = "softmax",
    observe: Callable | None = None,
) -> dict[str, float]:
    """Returns the metrics of a model on a dataset.

    Args:
        logits: maps images to logits, float32 [batch, classes]; an engine's,
            for example.
        dataset: a `tf.data.Dataset` of images and labels, int64 [batch] or
            float32 [batch, classes] of zeros and ones.
        loss_type: see `engines.cross_entropy`.
        observe: called with each batch: images, labels as vectors, logits.

    Returns:
        'top1' and 'top5' in [0, 1], 'cross_entropy' in nats and 'images', the
        number of examples. Label vectors (several labels per image) add

            precision_1, precision_5  share of correct classes among the top
                                      one or five
            recall_1, recall_5        share of the labels found among these
            pr_auc                    area under the precision-recall curve
                                      over all (image, class) pairs, 200
                                      thresholds

        and make 'top1' and 'top5' how often any of the labels is found.
    """
    images, entropy, curve = 0, 0.0, None
    top1 = top5 = found_labels = all_labels = 0.0
    batches = progress.track(
        dataset.as_numpy_iterator(),
        "Evaluating",
        max(0, int(dataset.cardinality())),
        "batches",
    )
    for batch_images, labels in batches:
        outputs = logits(batch_images)
        vectors = to_vectors(labels, outputs.shape[1])
        found = np.asarray(engines.at_likeliest(vectors, outputs))
        loss = float(engines.cross_entropy(vectors, outputs, loss_type))
        images += len(labels)
        entropy += loss * len(labels)
        top1 += float(found[:, 0].sum())
        top5 += float(found.max(axis=1).sum())
        found_labels += float(found.sum())
        all_labels += float(vectors.sum())
        if labels.ndim == 2:
            curve = curve or keras.metrics.AUC(200, curve="PR")
            curve.update_state(vectors, keras.ops.sigmoid(outputs))
        if observe is not None:
            observe(batch_images, vectors, outputs)
    result = {
        "top1": top1 / images,
        "top5": top5 / images,
        "cross_entropy": entropy / images,
        "images": images,
    }
    if curve is not None:
        result |= {
            "precision_1": top1 / images,
            "precision_5": found_labels / (found.shape[1] * images),
            "recall_1": top1 / all_labels,
            "recall_5": found_labels / all_labels,
            "pr_auc": float(curve.result()),
        }
    return result


def to_vectors(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns labels as float32 [batch, classes].

    Args:
        labels: int64 [batch], or float32 [batch, at most classes] of zeros
            and ones.
        classes: width of the result.
    """
    if labels.ndim == 1:
        return (labels[:, None] == np.arange(classes)).astype(np.float32)
    return np.pad(labels, [(0, 0), (0, classes - labels.shape[1])])


def evaluate_checkpoint(
    config: ml_collections.ConfigDict,
    data: Splits,
    run: Run,
    name: str | None,
    observe: Callable | None = None,
    engine=None,
) -> dict:
    """Evaluates the averaged weights of a checkpoint on `eval.split`.

    Args:
        config, data: of the run.
        run: of the checkpoint.
        name: see `checkpoints.find_checkpoint`.
        observe: see `evaluate`.
        engine: whose network is used once its training is over; None: a new
            one.

    Returns:
        The metrics of `evaluate`, with 'checkpoint', 'step', 'dataset' and
        'split'.
    """
    checkpoint = checkpoints.read_named(run.model_dir, name)
    engine = engine or engines.create(config, None)
    fingerprint.say_changes(config, run.model_dir, run.log)
    names = fingerprint.names_of_run(config, run.model_dir)
    source = sources.in_order_of(data[config.eval.split], names)
    weights.load_averaged(engine.network, checkpoint)
    with faults.explained(source):
        result = evaluate(
            engine.logits,
            pipeline.evaluation_dataset(source, config),
            config.train.loss_type,
            observe,
        )
    data.left_out.report()
    result |= {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.meta["step"],
        "dataset": config.data.ds_name,
        "split": config.eval.split,
    }
    run.log(
        f"{config.eval.split}: top-1 {result['top1']:.2%}, top-5 "
        f"{result['top5']:.2%} ({result['images']:,} images, "
        f"{checkpoint.path.name}, step {result['step']:,})"
    )
    return result


def measure_inference(
    config: ml_collections.ConfigDict, model_dir: str, batch_size: int
) -> dict:
    """Measures the best checkpoint's averaged weights on random images.

    Returns:
        'images_per_second', the median of several rounds after a warm-up,
        'lowest' and 'highest' of the rounds, 'batch_size', 'image_size' in
        pixels, 'rounds' and 'batches_per_round'.

    Raises:
        UserError: if there is no checkpoint.
    """
    engine = engines.create(config, None)
    best = checkpoints.read_named(model_dir, None)
    weights.load_averaged(engine.network, best)
    size = config.eval.isize
    images = np.random.default_rng(0).uniform(
        -1.0, 1.0, [batch_size, size, size, 3]
    )
    images = images.astype(np.float32)

    def images_per_second(batches):
        start = time.perf_counter()
        for _ in range(batches):
            engine.logits(images)
        return batches * batch_size / (time.perf_counter() - start)

    images_per_second(_WARM_UP)
    rates = [images_per_second(_BATCHES) for _ in range(_ROUNDS)]
    return {
        "images_per_second": statistics.median(rates),
        **{"lowest": min(rates), "highest": max(rates)},
        **{"batch_size": batch_size, "image_size": size},
        **{"rounds": _ROUNDS, "batches_per_round": _BATCHES},
    }
