"""What the engines of both backends share: a run's state, by name."""

import re
from collections.abc import Iterable, Mapping

import keras
import ml_collections
import numpy as np

from efficientnetv2.engines import optimizers
from efficientnetv2.errors import StrategyError
from efficientnetv2.files import CheckpointError
from efficientnetv2.models import architecture
from efficientnetv2.models.architecture import flat_layers
from efficientnetv2.progressive import RunPlan


class BaseEngine:
    """Network and optimizer of a run; see `engines` for what an engine does.

    Args:
        config: of the run.
        plan: of the run; None: there are no optimizer and averaged weights,
            and `logits` are those of the network's own weights.

    Attributes:
        trained: the variables that the optimizer changes.
        replicas: devices that share a global batch.
        device: what computes and how, for people.
        parts: of a batch that are computed side by side.
        augments: whether `step` takes crops, see `device.is_chosen`.
        is_chief: whether this process writes the run's files.
        class_weights: float32 [classes] or None, see `losses.cross_entropy`.

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
        self.trained = select(self._network, config.train.varsexp)
        self._decayed = decayed(self.trained, config.train.weight_decay_exclude)
        if self.plan:
            self.optimizer = optimizers.build_optimizer(config, self.plan)
            self.optimizer.build(self.trained)

    @property
    def network(self) -> keras.Model:
        """From images to logits, with the raw weights of this moment."""
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
        config: of the run.
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
            f"that each of {replicas} replicas has of a batch."
        )


# --- Names ------------------------------------------------------------------


def named(variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
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


def check(shapes: Mapping[str, tuple], arrays: Mapping, source) -> None:
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


def select(network: keras.Model, pattern: str | None) -> list[keras.Variable]:
    """Returns the variables that are trained, and freezes all others.

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


def decayed(variables: Iterable[keras.Variable], excluded: str) -> list[bool]:
    """Returns of each variable whether weight decay acts on it.

    Args:
        variables: that are trained.
        excluded: `train.weight_decay_exclude`.
    """
    pattern = re.compile(excluded)
    return [not pattern.match(variable.path) for variable in variables]
