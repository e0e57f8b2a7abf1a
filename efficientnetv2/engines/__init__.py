"""Engines: what trains a run on a backend of Keras.

An engine owns the state of a run and does what `train.py` asks of it, the
same on every backend:

    is_chief                    whether this process writes the run's files
    augments                    whether `step` takes crops, see
                                `data.device.is_chosen`
    step(batch, dropout_rate)   one optimizer step; metrics stay on the device
    first_bad_step()            whether a loss was not finite, and when
    arrays(), restore(arrays)   the whole state, by names that all engines share
    logits(images)              of the averaged weights
    dataset(make_dataset)       batches as `step` takes them
    end_training()              keeps the network alone, for other weights
"""

from collections.abc import Callable

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

    Must be called before the backend or `tf.data` did anything; devices and
    threads stay as the first call in a process set them.

    Args:
        config: of the run.
        training: whether all devices of the run are used, or one.

    Raises:
        UserError: for devices that are not there.
    """
    _backend().set_up(config, training)


def is_chief(config: ml_collections.ConfigDict) -> bool:
    """Whether this process writes the run's files; of several workers one does.

    Raises:
        UserError: if TF_CONFIG is wrong.
    """
    return _backend().is_chief(config)


def create(
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    log: Callable[[str], None] = print,
    training: bool = True,
):
    """Returns the engine of Keras' backend.

    Args:
        config: of the run.
        plan: of the run.
        log: prints one line.
        training: whether there are an optimizer and averaged weights; without
            them `logits` are those of the network's own weights.

    Raises:
        UserError: for devices that are not there, or a batch that cannot be
            split over them.
    """
    return _backend().Engine(config, plan, log, training)
