"""Engines: what trains a run on a Keras backend.

An engine owns the state of a run and does what `train.py` asks of it, the
same on every backend:

    is_chief                    whether this process writes the run's files
    augments                    whether `step` takes crops, see
                                `data.device.is_chosen`
    network, trained            the model with raw weights; what is trained
    micro_batch_size            images whose gradients are computed at once
    step(batch, dropout_rate)   one optimizer step, of images, float32
                                [batch, size, size, 3], and labels, float32
                                [batch, classes], or what `device.finish` makes
                                them from; dropout before the classifier in
                                [0, 1). Returns 'loss', 'cross_entropy', 'l2',
                                'top1' and 'top5', scalars on the device
    first_bad_step()            whether a loss was not finite, and when
    arrays(), restore(arrays)   the whole state, by names that all engines
                                share; CheckpointError if it does not fit
    reset_average()             begins with the weights of `network`
    logits(images)              of the averaged weights: float32 [batch,
                                classes]
    dataset(make_dataset)       batches as `step` takes them; the function takes
                                the `part` of `pipeline.training_dataset`
    end_training()              keeps the network alone, for other weights
"""

import ml_collections

from efficientnetv2 import backend
from efficientnetv2.progressive import RunPlan


def _backend():
    if backend.active() == "jax":
        from efficientnetv2.engines import jax as engine
    else:
        from efficientnetv2.engines import tensorflow as engine
    return engine


def set_up(config: ml_collections.ConfigDict, training: bool = True) -> None:
    """Sets devices, threads, precision and seeds for a run.

    Call it before the backend or `tf.data` is used; the first call in a process
    fixes devices and threads.

    Args:
        config: of the run.
        training: whether all devices of the run are used, or one.

    Raises:
        UserError: for missing devices.
    """
    _backend().set_up(config, training)


def is_chief(config: ml_collections.ConfigDict) -> bool:
    """Whether this process writes the run's files; one of several workers does.

    Raises:
        UserError: if TF_CONFIG is wrong.
    """
    return _backend().is_chief(config)


def create(config: ml_collections.ConfigDict, plan: RunPlan | None):
    """Returns the engine of Keras' backend, see `base.BaseEngine`.

    Args:
        config: of the run.
        plan: of the run; None: only `logits` will be used, with the network's
            own weights.

    Raises:
        UserError: for missing devices, or a batch that cannot be split over
            them.
    """
    return _backend().Engine(config, plan)
