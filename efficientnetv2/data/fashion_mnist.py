"""Fashion-MNIST from its four IDX archives, each verified by its SHA-256.

An archive is read where it lies: in the data folder, or where Debian's package
`dataset-fashion-mnist` puts it. Missing ones are downloaded from the first
mirror that answers, else taken out of Debian's package. That holds the official
archives less the name in the gzip header, so they are restored bit for bit.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", arXiv 1708.07747.
"""

import errno
import functools
import gzip
import hashlib
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from efficientnetv2.errors import DataError

if TYPE_CHECKING:
    import numpy as np

# Name: SHA-256, and the time in the gzip header (seconds since 1970).
ARCHIVES = {
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        1504176606,
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        1504176606,
    ),
    "t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        1504176627,
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        1504176627,
    ),
}
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
PACKAGE = "dataset-fashion-mnist"
INSTALLED = pathlib.Path("/usr/share/datasets/fashion-mnist")
_STEMS = {"train": "train", "test": "t10k"}
_SOURCE_ERRORS = (OSError, ValueError, subprocess.SubprocessError, DataError)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
# Waiting for a connection, and for the next bytes.
_TIMEOUT_SECONDS = (8, 60)
_APT = (
    "apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=10 "
    "-o Acquire::https::Timeout=10 -o APT::Sandbox::User=root"
).split()


def load_part(
    data_dir: pathlib.Path, part: str, log: Callable[[str], object] = print
) -> tuple["np.ndarray", "np.ndarray"]:
    """Returns all images and labels of a part, read once per process.

    Their order is that of `fashion_mnist:3.0.1` of TensorFlow Datasets.
    Several processes may call this concurrently, and be killed at any time.

    Args:
        data_dir: holds the archives (itself, or its folders `fashion_mnist`,
            `manual` and `downloads/manual`), or will in `fashion_mnist`.
        part: 'train' or 'test'.
        log: called with a line that says where missing archives came from.

    Returns:
        Read-only images, uint8 [n, 28, 28, 1], and labels, int64 [n].

    Raises:
        DataError: an archive is missing and no source has it, or is damaged.
    """
    if not is_here(data_dir):
        _obtain(data_dir, log)
    return _decode(data_dir, part)


def is_here(data_dir: pathlib.Path) -> bool:
    """Whether all archives lie on this machine, intact or not."""
    return all(_find(data_dir, name) for name in ARCHIVES)


def _restore(content: bytes, name: str) -> bytes:
    """Gives an archive of Debian's package its official gzip header back.

    Debian's builds strip the name and change the time (RFC 1952); the deflate
    stream is the original one. Any other content is returned as it is.
    """
    if content[:4] != b"\x1f\x8b\x08\x00":
        return content
    time = struct.pack("<I", ARCHIVES[name][1])
    stem = name.removesuffix(".gz").encode()
    return (
        b"\x1f\x8b\x08\x08" + time + b"\x00\x03" + stem + b"\0" + content[10:]
    )


def _find(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
    folders = ("fashion_mnist", ".", "manual", "downloads/manual", INSTALLED)
    paths = (data_dir / folder / name for folder in folders)
    return next(filter(os.path.lexists, paths), None)


def _read(path: pathlib.Path) -> bytes:
    """Returns an archive as it is officially, or raises DataError."""
    try:
        content = _restore(path.read_bytes(), path.name)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(content).hexdigest()
    expected, _ = ARCHIVES[path.name]
    if found != expected:
        raise DataError(
            f"{path} is damaged, or another file: its SHA-256 is {found}, not "
            f"{expected}. Remove it and run the command again."
        )
    return content


@functools.lru_cache(maxsize=2)
def _decode(
    data_dir: pathlib.Path, part: str
) -> tuple["np.ndarray", "np.ndarray"]:
    # A configuration names the archives and does not wait for NumPy.
    import numpy as np

    images, labels = (
        np.frombuffer(gzip.decompress(_read(_find(data_dir, name))), np.uint8)
        for name in ARCHIVES
        if name.startswith(_STEMS[part])
    )
    images, labels = images[16:].reshape(-1, 28, 28, 1), labels[8:]
    # TensorFlow Datasets sorts by the MD5 of the part's name and the row.
    salt = hashlib.md5(part.encode(), usedforsecurity=False)

    def key(row: int) -> bytes:
        digest = salt.copy()
        digest.update(b"%d" % row)
        return digest.digest()

    order = sorted(range(len(labels)), key=key)
    images, labels = images[order], labels[order].astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def _obtain(data_dir: pathlib.Path, log: Callable[[str], object]) -> None:
    """Puts all archives into `data_dir/fashion_mnist`."""
    folder = data_dir / "fashion_mnist"
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in (*MIRRORS, f"Debian's package {PACKAGE}"):
            try:
                if source in MIRRORS:
                    _download(source, folder)
                else:
                    _unpack_package(data_dir, folder)
                log(f"Fashion-MNIST: from {source}, verified, in {folder}")
                return
            except _SOURCE_ERRORS as error:
                if getattr(error, "errno", None) in _DISK_ERRORS:
                    raise
                tried.append(f"{source}: {_reason(error)}")
    except OSError as error:
        raise DataError(
            f"Could not write Fashion-MNIST (31 MB) to {folder}: "
            f"{error.strerror}. Name another folder with --data_dir."
        ) from error
    raise DataError(
        "Could not obtain Fashion-MNIST. Tried:\n"
        + "".join(f"  - {line}\n" for line in tried)
        + f"Connect to the network, or put {', '.join(ARCHIVES)} into "
        f"{folder}, and run the command again."
    )


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return (text.strip() or type(error).__name__).splitlines()[-1]


def _download(mirror: str, folder: pathlib.Path) -> None:
    """Raises OSError or ValueError if the mirror lacks an archive."""
    # Imports tqdm's notebook bar, which warns where Jupyter has no widgets.
    import pooch

    pooch.get_logger().setLevel("ERROR")
    registry = {name: sha256 for name, (sha256, _) in ARCHIVES.items()}
    store = pooch.create(folder, mirror, registry=registry, retry_if_failed=1)
    # The smallest first, which tells soonest of a mirror that has gone.
    for name in reversed(ARCHIVES):
        store.fetch(
            name,
            downloader=pooch.HTTPDownloader(
                progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_SECONDS
            ),
        )


def _unpack_package(data_dir: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises OSError or SubprocessError if the package cannot be obtained."""
    with tempfile.TemporaryDirectory() as work:
        run = functools.partial(
            subprocess.run,
            cwd=work,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )

        if not (debs := sorted(data_dir.glob(f"{PACKAGE}*.deb"))):
            try:
                run([*_APT, "download", PACKAGE])
            except subprocess.CalledProcessError:
                # A fresh container has no package lists, and only root may
                # renew those of the system; so these are private.
                for name in ("lists/partial", "cache/archives/partial"):
                    pathlib.Path(work, name).mkdir(parents=True)
                private = [f"-oDir::State::Lists={work}/lists"]
                private += [f"-oDir::Cache={work}/cache"]
                run([*_APT, *private, "-oDebug::NoLocking=1", "update"])
                run([*_APT, *private, "download", PACKAGE])
            debs = list(pathlib.Path(work).glob("*.deb"))
        run(["dpkg-deb", "-x", debs[0], work])
        for name in ARCHIVES:
            content = _read(pathlib.Path(work, *INSTALLED.parts[1:], name))
            staged = folder / f".{name}.{os.getpid()}"
            staged.write_bytes(content)
            os.replace(staged, folder / name)
