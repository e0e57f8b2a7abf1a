"""The Keras callbacks of users, called as `fit` would call them."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import keras

from efficientnetv2.config import RunPlan
from efficientnetv2.errors import UserError
from efficientnetv2.runs import State


def create(names: Sequence[str]) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that `train.callbacks` names.

    Args:
        names: 'module:Class'; or a function that returns a callback. Either
            is called without arguments. A module may lie in the working
            directory.

    Raises:
        UserError: for a module or name that is not there, or what is no
            callback.
    """
    return [_load(name) for name in names]


def _load(name: str) -> keras.callbacks.Callback:
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        # A console script has its own folder there.
        sys.path.append(here)
    try:
        made = getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"train.callbacks: {name} cannot be made: {error}. Modules are "
            f"looked for in {here} and among the installed ones; the class is "
            "called without arguments."
        ) from error
    if not isinstance(made, keras.callbacks.Callback):
        raise UserError(
            f"train.callbacks: {name} gives {type(made).__name__}, which is no "
            "keras.callbacks.Callback."
        )
    return made


class UserCallbacks:
    """Calls Keras callbacks around the steps of a run.

    Logs are means over the epoch so far, as in Keras: 'loss',
    'cross_entropy', 'l2', 'top1' and 'top5'; at the end of an epoch also what
    was evaluated in it, with the prefix 'val_'.

    Args:
        callbacks: to call; may be empty.
        engine: whose network they get as `model`, with raw weights. A
            callback that sets its `stop_training` ends the run after the
            step. On JAX the weights are for reading: the state that is
            trained is the engine's.
        plan: of the run.
        first_step: from which it trains.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        engine,
        plan: RunPlan,
        first_step: int,
    ):
        self.plan, self.engine = plan, engine
        self.network = network = engine.network
        self.list = None
        if not callbacks:
            return
        network.stop_training = False
        epochs = -(-plan.total_steps // plan.steps_per_epoch)
        self.list = keras.callbacks.CallbackList(
            list(callbacks),
            model=network,
            epochs=epochs,
            steps=plan.steps_per_epoch,
            verbose=0,
        )
        self._reset()
        self.list.on_train_begin()
        if first_step % plan.steps_per_epoch:
            self.list.on_epoch_begin(first_step // plan.steps_per_epoch)

    def _reset(self) -> None:
        self.sums, self.count, self.evaluated = {}, 0, {}
        self.logs = {}

    @property
    def stopped(self) -> bool:
        """Whether a callback asked for the end."""
        return self.list is not None and bool(
            getattr(self.network, "stop_training", False)
        )

    def before(self, step: int) -> None:
        """Is called before a step, which is counted from 0."""
        if self.list is None:
            return
        epoch, batch = divmod(step, self.plan.steps_per_epoch)
        if batch == 0:
            self._reset()
            self.list.on_epoch_begin(epoch)
        self.list.on_train_batch_begin(batch)

    def after(self, state: State, metrics: Mapping[str, float]) -> None:
        """Is called after a step, and after the evaluation that follows it.

        Args:
            state: of the run, behind the step.
            metrics: of this step.
        """
        if self.list is None:
            return
        self.count += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.logs = {n: total / self.count for n, total in self.sums.items()}
        evaluations = state.history["evaluations"]
        if evaluations and evaluations[-1]["step"] == state.step:
            self.evaluated = {
                f"val_{name}": evaluations[-1][name]
                for name in ("top1", "top5", "cross_entropy")
            }
        epoch, batch = divmod(state.step - 1, self.plan.steps_per_epoch)
        # On JAX, whoever asks for the network updates its variables.
        self.network = self.engine.network
        self.list.on_train_batch_end(batch, dict(self.logs))
        is_last = state.step == self.plan.total_steps
        if batch + 1 == self.plan.steps_per_epoch or is_last:
            self.list.on_epoch_end(epoch, {**self.logs, **self.evaluated})

    def end(self) -> None:
        """Is called once, when training is over."""
        if self.list is not None:
            self.list.on_train_end(dict(self.logs))
