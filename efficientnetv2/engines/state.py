"""The state of a run by name: the same names on every engine."""

import re
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from efficientnetv2.files import CheckpointError
from efficientnetv2.models.naming import flat_layers


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
            raise ValueError(f"Two variables are called {name!r}.")
        result[name] = variable
    return result


def groups(
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    averages: Iterable | None,
) -> dict:
    """Returns the state without the step: name to variable.

    Args:
        network: whose variables are 'network/...'.
        optimizer: whose variables are 'optimizer/...'.
        averages: of `network.weights`, in their order, 'ema/...'; None: there
            are none.
    """
    state = {}
    for group, variables in (
        ("network", network.variables),
        ("optimizer", optimizer.variables),
    ):
        for name, variable in named(variables).items():
            state[f"{group}/{name}"] = variable
    if averages is not None:
        for name, average in zip(named(network.weights), averages, strict=True):
            state[f"ema/{name}"] = average
    return state


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
