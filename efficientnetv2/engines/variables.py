"""The variables of a run by name: alike on every backend."""

import re
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from efficientnetv2.training.checkpoints import CheckpointError


def named(variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """Returns variables by names that are the same in every process.

    Keras numbers seed generators over the life of a process; here they are
    numbered in the order of the layers.

    Raises:
        ValueError: if two variables have one name.
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


def matching(
    variables: Iterable[keras.Variable], pattern: str | None
) -> list[keras.Variable]:
    """Returns the variables whose path matches `train.varsexp`.

    Args:
        variables: the trainable ones.
        pattern: a regular expression; None: all variables.

    Raises:
        CheckpointError: if none does.
    """
    variables = list(variables)
    if not pattern:
        return variables
    chosen = [v for v in variables if re.match(pattern, v.path)]
    if not chosen:
        raise CheckpointError(
            f"train.varsexp={pattern!r} matches no trainable variable; the "
            f"first is called {variables[0].path!r}."
        )
    return chosen


def check(
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
    source,
) -> None:
    """Checks that arrays fit variables, before any is assigned.

    Args:
        shapes: of the variables, by name.
        arrays: by name; others may be among them.
        source: where the arrays are from, for the message.

    Raises:
        CheckpointError: names the source, the variable and both shapes.
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise CheckpointError(f"{source} has no variable {name!r}.")
        if tuple(shape) != np.shape(arrays[name]):
            raise CheckpointError(
                f"{source}: {name!r} has the shape {np.shape(arrays[name])}, "
                f"the model needs {tuple(shape)}."
            )
