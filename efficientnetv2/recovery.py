"""Around the training loop: recovery from failures, and users' callbacks.

After a loss that is not finite, a run returns to the last checkpoint and skips
the data that led there; out of memory, it continues with smaller micro-batches;
a signal ends it with a checkpoint. Users' Keras callbacks are called as `fit`
would.
"""

import contextlib
import gc
import os
import pkgutil
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import ml_collections

from efficientnetv2.engines import optimizers
from efficientnetv2.errors import UserError
from efficientnetv2.progressive import RunPlan
from efficientnetv2.runs import State

# A run that goes back more often gives up.
_MOST_ROLLBACKS = 10


class NotFiniteError(UserError):
    """The loss became NaN or infinite.

    Attributes:
        step: where it happened.
        place: the same for people.
    """

    exit_code = 1

    def __init__(self, message: str, step: int, place: str):
        super().__init__(message)
        self.step, self.place = step, place


class Interrupted(UserError):
    """SIGTERM or Ctrl-C arrived; a checkpoint was written."""

    exit_code = 143


class OutOfMemoryError(UserError):
    """Not enough memory even for the smallest part of a batch."""

    exit_code = 1


class WorkerLost(UserError):
    """Another machine is not responding; the program must be restarted."""

    exit_code = 75


@contextlib.contextmanager
def signals() -> Iterator[types.SimpleNamespace]:
    """Turns SIGTERM and Ctrl-C into a request while the context is open.

    Its `signal` is the name of what arrived, or None.
    """
    stop = types.SimpleNamespace(signal=None)
    # Python delivers signals to the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def receive(number, frame):
        stop.signal = signal.Signals(number).name

    before = {
        number: signal.signal(number, receive)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_finite(
    engine, config: ml_collections.ConfigDict, plan: RunPlan
) -> None:
    """Raises a NotFiniteError if a loss was not finite."""
    step = engine.first_bad_step()
    if step is None:
        return
    rate = float(optimizers.learning_rate(config, plan)(step))
    place = (
        f"step {step:,} (stage {plan.stage_of_steps[step] + 1} of "
        f"{len(plan.stages)}, learning rate {rate:.3g})"
    )
    raise NotFiniteError(
        f"The loss is not finite at {place}. The last checkpoint is older. "
        "Lower train.lr_base, set train.gclip, or lengthen "
        "train.lr_warmup_epoch; train.on_nan=rollback goes back and skips "
        "that data.",
        step,
        place,
    )


class Recovery:
    """Repeats attempts at a run until one reaches its end.

    Args:
        on_nan: `train.on_nan`.
        batch_size: over all devices.
    """

    def __init__(
        self, on_nan: str, batch_size: int, log: Callable[[str], None]
    ):
        self.on_nan, self.batch_size, self.log = on_nan, batch_size, log
        self.rollbacks = 0
        # Changes the state that the next attempt resumes with.
        self.amend: Callable[[State], None] = lambda state: None

    def until_done(self, attempt: Callable[["Recovery"], Any]) -> Any:
        """Repeats `attempt` until one succeeds; returns its result.

        Args:
            attempt: trains from the latest checkpoint on. It sets `engine` and
                `state`, and calls `amend` with the state it resumes with.

        Raises:
            UserError: if the run gives up.
        """
        while True:
            self.engine = self.state = None
            try:
                return attempt(self)
            except NotFiniteError as error:
                self.amend = self._roll_back(error)
            except Exception as error:
                if self.engine is None:
                    raise
                if self.engine.is_lost_worker(error):
                    raise WorkerLost(
                        "Another worker is not responding."
                    ) from error
                if not self.engine.is_out_of_memory(error):
                    raise
                self.amend = self._use_less_memory(error)
            # Its memory must be free before the next attempt builds another.
            self.engine = None
            gc.collect()

    def _roll_back(self, error: NotFiniteError):
        """Goes back to a checkpoint and skips the data since."""
        if self.on_nan == "stop":
            raise error
        if self.rollbacks == _MOST_ROLLBACKS:
            raise NotFiniteError(
                f"{error} It already went back {self.rollbacks} times.",
                error.step,
                error.place,
            ) from None
        self.rollbacks += 1
        skipped = self.state.history["skipped"]

        def amend(state: State) -> None:
            stretch = error.step + 1 - state.step
            state.history["skipped"] = skipped + stretch
            self.log(
                f"The loss was not finite at {error.place}: returning to step "
                f"{state.step:,} and skipping the {stretch:,} batches since."
            )

        return amend

    def _use_less_memory(self, error: Exception):
        """Goes back to a checkpoint with smaller micro-batches."""
        replicas, history = self.engine.replicas, self.state.history
        part, unit = self.batch_size // replicas, self.engine.parts
        current = min(history["micro_batch_size"] or part, part)
        smaller = [
            size
            for size in range(unit, current // 2 + 1)
            if part % size == 0 and size % unit == 0
        ]
        if not smaller:
            raise OutOfMemoryError(
                f"Out of memory with {current} images at a time. Use a "
                "smaller model, train.isize or train.batch_parts."
            ) from error
        skipped, size = history["skipped"], smaller[-1]

        def amend(state: State) -> None:
            state.history |= {"skipped": skipped, "micro_batch_size": size}
            self.log(
                f"Out of memory: from step {state.step:,} on, the gradients of "
                f"{part} images are accumulated over {size} at a time"
                + (f" on each of {replicas} replicas." if replicas > 1 else ".")
            )

        return amend


# --- Callbacks of users -----------------------------------------------------


def load_callbacks(names: Sequence[str]) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that `train.callbacks` names.

    Args:
        names: 'module:Class'; or a function that returns a callback. Either
            is called without arguments. A module may lie in the working
            directory.

    Raises:
        UserError: for a missing module or name, or something that is not a
            callback.
    """
    here, found = os.getcwd(), []
    if here not in sys.path:
        # A console script has its own folder there.
        sys.path.append(here)
    for name in names:
        try:
            made = pkgutil.resolve_name(name)()
        except (ImportError, AttributeError, TypeError) as error:
            raise UserError(
                f"train.callbacks: {name} cannot be created: {error}. Modules "
                f"are looked for in {here} and among the installed ones; the "
                "class is called without arguments."
            ) from error
        if not isinstance(made, keras.callbacks.Callback):
            raise UserError(
                f"train.callbacks: {name} gives {type(made).__name__}, which "
                "is not a keras.callbacks.Callback."
            )
        found.append(made)
    return found


class UserCallbacks:
    """Calls Keras callbacks around the steps of a run.

    Logs are means over the epoch so far, as in Keras: 'loss',
    'cross_entropy', 'l2', 'top1' and 'top5'; at the end of an epoch also what
    was evaluated in it, with the prefix 'val_'.

    Args:
        callbacks: to call; may be empty.
        engine: whose network they get as `model`, with raw weights. A
            callback that sets its `stop_training` ends the run after the
            step. On JAX the weights are read-only: the engine holds the trained
            state.
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
        self.sums, self.count, self.evaluated, self.logs = {}, 0, {}, {}

    @property
    def stopped(self) -> bool:
        """Whether a callback asked for the end."""
        return self.list is not None and bool(
            getattr(self.network, "stop_training", False)
        )

    def before(self, step: int) -> None:
        """Called before a step, counted from 0."""
        if self.list is None:
            return
        epoch, batch = divmod(step, self.plan.steps_per_epoch)
        if batch == 0:
            self._reset()
            self.list.on_epoch_begin(epoch)
        self.list.on_train_batch_begin(batch)

    def after(self, state: State, metrics: Mapping[str, float]) -> None:
        """Called after a step, and after the evaluation that follows it."""
        if self.list is None:
            return
        self.count += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.logs = {n: total / self.count for n, total in self.sums.items()}
        last = (state.history["evaluations"] or [{"step": None}])[-1]
        if last["step"] == state.step:
            names = ("top1", "top5", "cross_entropy")
            self.evaluated = {f"val_{name}": last[name] for name in names}
        epoch, batch = divmod(state.step - 1, self.plan.steps_per_epoch)
        # On JAX, asking for the network updates its variables.
        self.network = self.engine.network
        self.list.on_train_batch_end(batch, dict(self.logs))
        is_last = state.step == self.plan.total_steps
        if batch + 1 == self.plan.steps_per_epoch or is_last:
            self.list.on_epoch_end(epoch, {**self.logs, **self.evaluated})

    def end(self) -> None:
        """Called once, when training is over."""
        if self.list is not None:
            self.list.on_train_end(dict(self.logs))
