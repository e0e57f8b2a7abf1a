"""Files that are complete or absent, and locks that end with their process."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

from efficientnetv2.errors import UserError

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class CheckpointError(UserError):
    """A file of a run that cannot be written, found, read or matched."""


def cannot_write(path: str | os.PathLike, reason: str) -> CheckpointError:
    """Returns the error for a file or folder of a run, and what to do."""
    return CheckpointError(
        f"Cannot write {path}: {reason}. Earlier files are unharmed; free "
        "space or make the folder writable, then rerun the command to "
        "resume."
    )


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Converts errors of a full or read-only disk into CheckpointError.

    `folder` is what the message names where the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        # A write to an open file does not say which.
        path = error.filename or folder
        raise cannot_write(path, error.strerror) from error
    except Exception as error:
        # TensorFlow's errors are recognized without importing it.
        text = getattr(error, "message", None)
        for reason in map(os.strerror, _UNWRITABLE):
            if isinstance(text, str) and reason in text:
                raise cannot_write(folder, reason) from error
        raise


def write_atomically(path: str | os.PathLike, write) -> None:
    """Writes a file, complete or not at all, by `write(binary file)`.

    Raises:
        CheckpointError: if the disk is full or the folder not writable; a
            file that was at `path` is unharmed.
    """
    path = pathlib.Path(path)
    # Machines may share the folder.
    writer = f"{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A folder that became read-only refuses this, too.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error.strerror or str(error)) from error


def write_json(path: str | os.PathLike, content) -> None:
    """Writes JSON atomically; see `write_atomically`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text atomically; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


class Lock(NamedTuple):
    """The result of `locked`."""

    holder: str | None  # such as 'process 123 on host'; None: this process
    # Of the locked file. A child that inherits it holds the lock, too.
    descriptor: int


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[Lock]:
    """Locks a file, which is made if needed, while the context is open.

    A filesystem without locks locks nothing.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        holder = None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
        except OSError:
            pass
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield Lock(holder, file.fileno())


def is_locked(path: str | os.PathLike) -> bool:
    """Whether a process holds a lock of `locked`; changes nothing."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
