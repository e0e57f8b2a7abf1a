"""Locks that end with the process that holds them."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[str | None]:
    """Locks a file, which is made if needed, while the context is open.

    A filesystem without locks locks nothing.

    Yields:
        None if the lock is ours; else who has it, 'process 123 on host'.
    """
    path = pathlib.Path(path)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        except OSError:
            yield None
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield None
