"""Locks that end with the process that holds them."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import NamedTuple


class Lock(NamedTuple):
    """What `locked` has found.

    Attributes:
        holder: who has the lock, 'process 123 on host'; None: it is ours.
        descriptor: of the locked file. A child that inherits it holds the
            lock, too.
    """

    holder: str | None
    descriptor: int


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[Lock]:
    """Locks a file, which is made if needed, while the context is open.

    A filesystem without locks locks nothing.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            yield Lock(holder, file.fileno())
            return
        except OSError:
            yield Lock(None, file.fileno())
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield Lock(None, file.fileno())
