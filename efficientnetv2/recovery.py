"""Around the loop: what a run does when something goes wrong.

A loss that is not finite sends it back to the last checkpoint without the data
that led there, too little memory to smaller micro-batches; a signal ends it
with a checkpoint.
"""

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from efficientnetv2.errors import UserError
from efficientnetv2.runs import Run, State

# A run that goes back more often gives up.
_MOST_ROLLBACKS = 10


class NotFiniteError(UserError):
    """The loss became NaN or infinite.

    Attributes:
        step: at which it was so.
    """

    exit_code = 1

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Interrupted(UserError):
    """SIGTERM or Ctrl-C arrived; a checkpoint was written."""

    exit_code = 143


class OutOfMemoryError(UserError):
    """There is too little memory for even the smallest part of a batch."""

    exit_code = 1


class WorkerLost(UserError):
    """Another machine does not answer; the program must be started again."""

    exit_code = 75


class Stop:
    """A request to stop after the current step.

    Attributes:
        signal: name of the signal that arrived; None: none did.
    """

    signal: str | None = None


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """Turns SIGTERM and Ctrl-C into a request while the context is open."""
    stop = Stop()
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


class Recovery:
    """Repeats attempts at a run until one reaches its end.

    Args:
        run: that is trained.
    """

    def __init__(self, run: Run):
        self.run = run
        self.rollbacks = 0
        # Changes the state that the next attempt resumes with.
        self.amend: Callable[[State], None] = lambda state: None

    def until_done(self, attempt: Callable[["Recovery"], Any]) -> Any:
        """Returns what the first attempt returns that is not cut short.

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
                        "Another worker does not answer."
                    ) from error
                if not self.engine.is_out_of_memory(error):
                    raise
                self.amend = self._use_less_memory(error)
            # Its memory must be free before the next attempt builds another.
            self.engine = None
            gc.collect()

    def _roll_back(self, error: NotFiniteError):
        """Goes back to a checkpoint and leaves out the data since."""
        if self.run.config.train.on_nan == "stop":
            raise error
        if self.rollbacks == _MOST_ROLLBACKS:
            raise NotFiniteError(
                f"{error} It went back {self.rollbacks} times before.",
                error.step,
            ) from None
        self.rollbacks += 1
        skipped = self.state.history["skipped"]

        def amend(state: State) -> None:
            stretch = error.step + 1 - state.step
            state.history["skipped"] = skipped + stretch
            self.run.log(
                "The loss was not finite at "
                f"{self.run.describe_step(error.step)}: back to step "
                f"{state.step:,}, without the {stretch:,} batches of data that "
                "led there."
            )

        return amend

    def _use_less_memory(self, error: Exception):
        """Goes back to a checkpoint with smaller micro-batches."""
        train, engine = self.run.config.train, self.engine
        replicas, history = engine.replicas, self.state.history
        part, unit = train.batch_size // replicas, engine.parts
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
            self.run.log(
                f"Out of memory: from step {state.step:,} on, the gradients of "
                f"{part} images are accumulated over {size} at a time"
                + (f" on each of {replicas} replicas." if replicas > 1 else ".")
            )

        return amend
