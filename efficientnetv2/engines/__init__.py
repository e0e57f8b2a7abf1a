"""Engines: what trains a run on a Keras backend.

`create` gives that of the active backend, see `BaseEngine`. Here is what they
share: a state of named variables, and the losses.
"""

import re
from collections.abc import Iterable, Mapping

import keras
import ml_collections
import numpy as np

from efficientnetv2 import backend
from efficientnetv2.engines import optimizers
from efficientnetv2.errors import StrategyError
from efficientnetv2.files import CheckpointError
from efficientnetv2.models import architecture
from efficientnetv2.models.architecture import flat_layers
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
    """Returns the engine of Keras' backend, see `BaseEngine`.

    Args:
        plan: of the run; None: only `logits` will be used, with the network's
            own weights.

    Raises:
        UserError: for missing devices, or a batch that cannot be split over
            them.
    """
    return _backend().Engine(config, plan)


class BaseEngine:
    """Network and optimizer of a run. On each backend an engine also has

        step(batch, dropout_rate)   one optimizer step, of images, float32
                                    [batch, size, size, 3], and labels, float32
                                    [batch, classes], or what `device.finish`
                                    makes them from; dropout before the
                                    classifier in [0, 1). Returns 'loss',
                                    'cross_entropy', 'l2', 'top1' and 'top5',
                                    scalars on the device
        first_bad_step()            whether a loss was not finite, and when
        arrays(), restore(arrays)   the whole state, by names that all engines
                                    share; CheckpointError if it does not fit
        reset_average()             begins with the weights of `network`
        logits(images)              of the averaged weights: float32 [batch,
                                    classes]
        dataset(make_dataset)       batches as `step` takes them; the function
                                    takes the `part` of
                                    `pipeline.training_dataset`
        end_training()              keeps the network alone, for other weights

    Args:
        plan: of the run; None: there are no optimizer and averaged weights,
            and `logits` are those of the network's own weights.

    Attributes:
        trained: the variables that the optimizer changes.
        replicas: devices that share a global batch.
        device: description of devices and precision.
        parts: of a batch that are computed in parallel.
        augments: whether `step` takes crops, see `device.is_chosen`.
        is_chief: whether this process writes the run's files.
        class_weights: float32 [classes] or None, see `cross_entropy`.

    Raises:
        StrategyError: if there is no such device, or the batch cannot be
            split over all of them.
        CheckpointError: if `train.varsexp` matches nothing.
    """

    parts = 1
    is_chief = True
    replicas = 1

    def __init__(self, config: ml_collections.ConfigDict, plan: RunPlan | None):
        self.config, self.plan = config, plan
        self.optimizer = self.class_weights = self._step_function = None
        self._micro_batch_size = config.train.micro_batch_size

    def _build(self) -> None:
        """Builds network and optimizer, on the devices of the run."""
        config = self.config
        self._network = architecture.build_network(config.model.to_dict())
        self.trained = _select(self._network, config.train.varsexp)
        self._decayed = _decayed(
            self.trained, config.train.weight_decay_exclude
        )
        if self.plan:
            self.optimizer = optimizers.build_optimizer(config, self.plan)
            self.optimizer.build(self.trained)

    @property
    def network(self) -> keras.Model:
        """The model from images to logits, with its current raw weights."""
        return self._network

    @property
    def micro_batch_size(self) -> int:
        """Images whose gradients a device computes at once; 0: all it has."""
        return self._micro_batch_size

    @micro_batch_size.setter
    def micro_batch_size(self, size: int) -> None:
        if size != self._micro_batch_size:
            self._micro_batch_size, self._step_function = size, None


def check_batch(
    config: ml_collections.ConfigDict, replicas: int, unit: int
) -> None:
    """Checks that devices can share a batch.

    Args:
        replicas: devices.
        unit: what a global batch must be a multiple of.

    Raises:
        StrategyError: with a size that can be split.
    """
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if batch % unit:
        near = max(unit, round(batch / unit) * unit)
        raise StrategyError(
            f"train.batch_size={batch} cannot be split over {replicas} "
            f"replicas: it must be a multiple of {unit}, such as {near}."
        )
    part = batch // replicas
    if micro and part % min(micro, part):
        raise StrategyError(
            f"train.micro_batch_size={micro} does not divide the {part} images "
            f"of a batch that each of {replicas} replicas gets."
        )


# --- Names ------------------------------------------------------------------


def by_name(variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """Returns variables by names that are the same in every process.

    Keras numbers seed generators over the life of a process; here they are
    numbered in the order of the layers.
    """
    result, seeds = {}, 0
    for variable in variables:
        name = variable.path
        if "seed_generator" in name:
            name, seeds = f"seed_generator_{seeds}", seeds + 1
        if name in result:
            raise ValueError(f"Two variables are named {name!r}.")
        result[name] = variable
    return result


def check_shapes(shapes: Mapping[str, tuple], arrays: Mapping, source) -> None:
    """Checks that arrays fit a state, before any is assigned.

    Args:
        shapes: of the state, by name.
        arrays: NumPy arrays by name.
        source: where they come from, for the message.

    Raises:
        CheckpointError: names the file, the variable and both shapes.
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise CheckpointError(f"{source} has no variable {name!r}.")
        if tuple(shape) != np.shape(arrays[name]):
            raise CheckpointError(
                f"{source}: {name!r} has the shape {np.shape(arrays[name])}, "
                f"the model needs {tuple(shape)}."
            )


def _select(network: keras.Model, pattern: str | None) -> list[keras.Variable]:
    """Returns the variables to train, and freezes all others.

    Batch normalization whose scale and offset are frozen keeps its statistics
    and normalizes by them.

    Args:
        network: whose variables are chosen.
        pattern: regular expression that the paths of trained variables match
            from their beginning (`train.varsexp`); None: all are trained.

    Raises:
        CheckpointError: if no variable matches.
    """
    variables = list(network.trainable_variables)
    if not pattern:
        return variables
    chosen = {v.path for v in variables if re.match(pattern, v.path)}
    if not chosen:
        raise CheckpointError(
            f"train.varsexp={pattern!r} matches no trainable variable; the "
            f"first is called {variables[0].path!r}."
        )
    for layer in flat_layers(network):
        for part in (layer, *vars(layer).values()):
            if isinstance(part, keras.layers.BatchNormalization):
                part.trainable = any(
                    v.path in chosen for v in part.trainable_variables
                )
    for variable in variables:
        variable.trainable = variable.path in chosen
    return [variable for variable in variables if variable.path in chosen]


def _decayed(variables: Iterable[keras.Variable], excluded: str) -> list[bool]:
    """Returns for each variable whether weight decay applies to it.

    Args:
        variables: that are trained.
        excluded: `train.weight_decay_exclude`.
    """
    pattern = re.compile(excluded)
    return [not pattern.match(variable.path) for variable in variables]


# --- Losses -----------------------------------------------------------------


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
