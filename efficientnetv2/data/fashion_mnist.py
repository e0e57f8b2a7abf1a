"""Fashion-MNIST, the real one, also where its web host does not answer.

The data come from TensorFlow Datasets' own, unmodified `fashion_mnist:3.0.1`
builder, which verifies the SHA-256 of each of the four archives. Only where
the archives come from is decided here; the first source that works wins:

1. the data are prepared already;
2. archives that the user put into the data folder;
3. TensorFlow Datasets' download;
4. Debian's package `dataset-fashion-mnist`: installed, a .deb file at hand,
   or fetched by apt-get, none of which needs root.

The package's archives are the official ones less the name field of the gzip
header, so they can be restored to the last bit (`restore_archive`).

Source of the data: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image
Dataset for Benchmarking Machine Learning Algorithms", arXiv 1708.07747.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import http.client
import importlib.util
import io
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientnetv2.errors import DataError, nearest

if TYPE_CHECKING:
    import numpy as np

BUILDER = "fashion_mnist:3.0.1"
SPLITS = {"train": 60_000, "test": 10_000}
PACKAGE = "dataset-fashion-mnist"
NEEDED_BYTES = 150_000_000

# Seconds since 1970 that the official archives carry in their gzip headers.
MTIMES = {
    "train-images-idx3-ubyte.gz": 1504176606,
    "train-labels-idx1-ubyte.gz": 1504176606,
    "t10k-images-idx3-ubyte.gz": 1504176627,
    "t10k-labels-idx1-ubyte.gz": 1504176627,
}

_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
_LOCK = ".fashion_mnist.lock"
_STAGING = ".fashion_mnist.incomplete-"
_PROBE_SECONDS = 8
_STALL_SECONDS = 60
_TFRECORD_FRAME_BYTES = 16
_FOREIGN_LEFTOVER_SECONDS = 3600


class _Absent(DataError):
    """A source has nothing to offer, which is no fault of anyone."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Fashion-MNIST on disk, complete.

    Attributes:
        builder: the `tfds.core.DatasetBuilder`, ready for `as_dataset`.
        origin: where the archives came from, in words for a person.
    """

    builder: Any
    origin: str

    @property
    def class_names(self) -> list[str]:
        """The ten class names, in the order of the labels 0 to 9."""
        return list(self.builder.info.features["label"].names)


def prepare(
    data_dir: str | os.PathLike, log: Callable[[str], Any] = print
) -> Prepared:
    """Makes Fashion-MNIST ready in `data_dir`, once.

    May be called at any time, by several processes at once, and after any
    of them was killed: the work is done in a hidden folder inside `data_dir`
    and moved into place when complete. What is there already is used after a
    check of counts and file sizes, and prepared again where they are wrong.

    Args:
        data_dir: a local folder, made if missing; the data then lie in
            `data_dir/fashion_mnist/3.0.1`, where TFDS looks for them too.
        log: called with one line that says where the data came from; before
            it, only if there is need, with a line that another process is
            waited for, or that a file of the user's is damaged and ignored.

    Returns:
        The builder and where its data came from.

    Raises:
        DataError: no source works, or `data_dir` cannot be used (a file, not
            writable, less than 150 MB free).
    """
    if "://" in os.fspath(data_dir):
        raise DataError(
            f"Fashion-MNIST is prepared in a local folder only, and {data_dir} "
            "is none. Give a local data_dir."
        )
    data_dir = Path(data_dir).expanduser().absolute()
    final = data_dir / BUILDER.replace(":", "/")
    if _is_complete(final) and not (
        _leftovers(data_dir) and os.access(data_dir, os.W_OK)
    ):
        return _finish(data_dir, "already prepared", log)
    with _explained(data_dir):
        made = _make_folder(data_dir)
        try:
            with _locked(data_dir, log):
                for leftover in _leftovers(data_dir):
                    _remove(leftover)
                if _is_complete(final):
                    origin = "already prepared"
                else:
                    origin = _prepare_from_scratch(data_dir, final, log)
        finally:
            _remove_empty([final.parent, *made])
    return _finish(data_dir, origin, log)


def load_arrays(
    prepared: Prepared, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole split into memory, in the order on disk.

    A process reads a split once: 'train' and 'minival' of a run are slices
    of the same arrays, which must not be written.

    Args:
        prepared: what `prepare` returned.
        split: 'train' or 'test'.

    Returns:
        Images, uint8 [n, 28, 28, 1] in 0..255, and labels, int64 [n] in 0..9.

    Raises:
        DataError: no such split, or a file is damaged.
    """
    if split not in SPLITS:
        hint = nearest(split, SPLITS)
        raise DataError(
            f"Fashion-MNIST has no split {split!r}, only "
            f"{' and '.join(SPLITS)}."
            + (f" Did you mean {hint!r}?" if hint else "")
        )

    import tensorflow as tf

    info = prepared.builder.info.splits[split]
    count = info.num_examples
    files = []
    try:
        for path in map(os.fspath, info.filepaths):
            found = os.stat(path)
            files.append((path, found.st_size, found.st_mtime_ns))
        images, labels = _read_shards(tuple(files), count)
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise DataError(_damaged(prepared, str(error))) from error
    if len(labels) != count:
        raise DataError(
            _damaged(prepared, f"{len(labels)} of {count} examples")
        )
    return images, labels


@functools.lru_cache(maxsize=2)
def _read_shards(
    files: tuple[tuple[str, int, int], ...], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of shards: `count`, or fewer if some lack.

    Args:
        files: path, bytes and time of change of each, by which what was read
            before is known again.
        count: of examples.
    """
    import numpy as np
    import tensorflow as tf

    images = np.empty((count, 28, 28, 1), np.uint8)
    labels = np.empty((count,), np.int64)

    # A batch is parsed at once, which halves the time of TFDS' own pipeline.
    def decode(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_example(
            serialized,
            {
                "image": tf.io.FixedLenFeature([], tf.string),
                "label": tf.io.FixedLenFeature([], tf.int64),
            },
        )
        decoded = tf.map_fn(
            lambda png: tf.io.decode_png(png, channels=1),
            parsed["image"],
            fn_output_signature=tf.TensorSpec([28, 28, 1], tf.uint8),
        )
        return decoded, parsed["label"]

    batches = (
        tf.data.TFRecordDataset([path for path, *_ in files])
        .batch(500)
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    filled = 0
    for batch_images, batch_labels in batches.as_numpy_iterator():
        end = filled + len(batch_labels)
        images[filled:end] = batch_images
        labels[filled:end] = batch_labels
        filled = end
    for array in (images, labels):
        array.flags.writeable = False
    return images[:filled], labels[:filled]


def restore_archive(archive: bytes, name: str) -> bytes:
    """Gives an archive of Debian's package its official gzip header back.

    Debian's reproducible builds strip the name field and the time (`gzip -n`
    on the header, RFC 1952); the deflate stream is the original one. Bytes
    that are no gzip file without a name are returned as they are: a check of
    the SHA-256 follows anyway.

    Args:
        archive: the content of the file.
        name: its official name, a key of `MTIMES`.
    """
    if archive[:4] != b"\x1f\x8b\x08\x00":
        return archive
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", MTIMES[name]) + b"\x00\x03"
    stem = name.removesuffix(".gz").encode("ascii")
    return header + stem + b"\x00" + archive[10:]


def unpack_deb(deb: Path, folder: Path) -> None:
    """Unpacks a Debian package without root, and without Debian's tools.

    A .deb file is an `ar` archive of which one member, data.tar with a
    suffix for the compression, holds the files (deb(5)). `dpkg-deb` is used
    where there is one, since it knows every compression.

    Raises:
        DataError: the file is no complete Debian package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run(["dpkg-deb", "-x", deb, folder], timeout=300)
    except FileNotFoundError:
        _unpack_deb_in_python(deb, folder)
    except DataError as error:
        raise DataError(_corrupt(deb, str(error))) from error


def collect_archives(data_dir: Path, folder: Path) -> tuple[str, list[str]]:
    """Puts the four official archives into `folder`, from sources 2 to 4.

    Args:
        data_dir: where the user may have put archives or a .deb file.
        folder: an existing, empty folder on a disk with 150 MB free; the
            archives are all that is left in it.

    Returns:
        Where they came from, and what was found wrong on the way there.

    Raises:
        DataError: no source works; names each source and what is wrong.
    """
    record = _record()
    sources = [
        lambda work: _from_user(data_dir, work, record),
        lambda work: _from_web(work, record),
        lambda work: _from_installed_package(work, record),
        lambda work: _from_deb_files(data_dir, work, record),
        lambda work: _from_apt(work, record),
    ]
    failures: list[DataError] = []
    for source in sources:
        work = Path(tempfile.mkdtemp(dir=folder))
        try:
            origin = source(work)
            for name in record:
                os.replace(work / name, folder / name)
            faults = [str(f) for f in failures if not isinstance(f, _Absent)]
            return origin, faults
        except DataError as error:
            failures.append(error)
        finally:
            _remove(work)
    looked = "\n".join(f"  - {failure}" for failure in failures)
    raise DataError(
        f"Fashion-MNIST cannot be had. What was tried:\n{looked}\n"
        f"Connect to the network, or put the four archives "
        f"({', '.join(record)}) or the file {PACKAGE}_VERSION_all.deb into "
        f"{data_dir}, and run the command again."
    )


def _prepare_from_scratch(
    data_dir: Path, final: Path, log: Callable[[str], Any]
) -> str:
    """Fills `final`; nothing but `final` is changed or left. Needs the lock."""
    free = shutil.disk_usage(data_dir).free
    if free < NEEDED_BYTES:
        raise DataError(_no_space(data_dir, free))
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=data_dir))
    try:
        archives = staging / "archives"
        archives.mkdir()
        origin, faults = collect_archives(data_dir, archives)
        _status("Fashion-MNIST: preparing the examples, about half a minute")
        try:
            _run_child("_build", staging / "tfds", archives)
        except DataError as error:
            raise DataError(
                "TensorFlow Datasets cannot prepare Fashion-MNIST from the "
                f"verified archives: {error}"
            ) from error
        built = staging / "tfds" / final.relative_to(data_dir)
        if not _is_complete(built):
            raise DataError(
                f"The prepared Fashion-MNIST in {built} is incomplete, though "
                "TensorFlow Datasets reported no error. Run the command again."
            )
        _flush_to_disk(built)
        final.parent.mkdir(exist_ok=True)
        if os.path.lexists(final):
            os.rename(final, staging / "replaced")
        os.rename(built, final)
    finally:
        _status("")
        _remove(staging)
    for fault in faults:
        log(f"Fashion-MNIST: ignored: {fault}")
    return f"{origin}, checksums verified"


def _finish(data_dir: Path, origin: str, log: Callable[[str], Any]) -> Prepared:
    import tensorflow_datasets as tfds

    builder = tfds.builder(BUILDER, data_dir=os.fspath(data_dir))
    counts = " + ".join(f"{count:,}" for count in SPLITS.values())
    where = data_dir / BUILDER.replace(":", "/")
    done = "" if origin == "already prepared" else ", prepared"
    log(f"Fashion-MNIST: {counts} images, {origin}{done} in {where}")
    return Prepared(builder=builder, origin=origin)


def _is_complete(folder: Path) -> bool:
    """Whether counts and file sizes are those that TFDS recorded.

    TFDS records the bytes of the examples; a TFRecord file frames each with
    a length (8 bytes) and two checksums (4 bytes each).
    """
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        if info["fileFormat"] != "tfrecord":
            return False
        if not (folder / "features.json").read_text("utf-8").strip():
            return False
        counts = {}
        for split in info["splits"]:
            name, lengths = split["name"], split["shardLengths"]
            counts[name] = sum(map(int, lengths))
            stem, of = f"{info['name']}-{name}.tfrecord", len(lengths)
            shards = [folder / f"{stem}-{i:05d}-of-{of:05d}" for i in range(of)]
            recorded = int(split["numBytes"])
            recorded += _TFRECORD_FRAME_BYTES * counts[name]
            if sum(shard.stat().st_size for shard in shards) != recorded:
                return False
        return counts == SPLITS
    except (OSError, ValueError, KeyError, TypeError):
        return False


# ---------------------------------------------------------------- sources


def digests() -> dict[str, str]:
    """Returns archive name -> SHA-256, which every copy of the data has."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    file = Path(spec.origin).parent / "url_checksums" / "fashion_mnist.txt"
    rows = (line.split("\t") for line in file.read_text().splitlines())
    return {url.rpartition("/")[2]: digest for url, _, digest, *_ in rows}


def _record() -> dict[str, tuple[str, str]]:
    """Archive name -> (URL, SHA-256), as TFDS has them on record."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    file = Path(tfds.__file__).parent / "url_checksums" / "fashion_mnist.txt"
    infos = checksums.load_url_infos(file)
    record = {
        url.rsplit("/", 1)[1]: (url, info.checksum)
        for url, info in infos.items()
    }
    return {name: record[name] for name in MTIMES}


def _gather(
    source: Path, folder: Path, record: dict[str, tuple[str, str]]
) -> None:
    """Writes the verified archives of `source` into `folder`."""
    for name, (_, expected) in record.items():
        path = source / name
        try:
            archive = restore_archive(path.read_bytes(), name)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror})"
            ) from error
        found = hashlib.sha256(archive).hexdigest()
        if found != expected:
            raise DataError(
                f"{path}: wrong checksum, the file is damaged or another one "
                f"(SHA-256 expected {expected}, found {found}); remove it"
            )
        (folder / name).write_bytes(archive)


def _from_user(
    data_dir: Path, work: Path, record: dict[str, tuple[str, str]]
) -> str:
    folders = [data_dir, data_dir / "manual", data_dir / "downloads" / "manual"]
    faults = []
    for folder in folders:
        missing = [n for n in record if not os.path.exists(folder / n)]
        if len(missing) == len(record):
            continue
        if missing:
            faults.append(f"{folder}: {', '.join(missing)} missing")
            continue
        try:
            _gather(folder, work, record)
            return f"from the archives in {folder}"
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("; ".join(faults))
    raise _Absent(
        f"the four archives in {', '.join(map(str, folders))}: not there"
    )


def _from_web(work: Path, record: dict[str, tuple[str, str]]) -> str:
    url, expected = record["t10k-labels-idx1-ubyte.gz"]
    host = url.rsplit("/", 1)[0]
    _status("Fashion-MNIST: asking its web host")
    fault = _probe(url, expected)
    if not fault:
        _status("Fashion-MNIST: downloading")
        try:
            _run_child("_download", work, watched=work)
            _gather(work, work, record)
            return f"downloaded from {host}"
        except DataError as error:
            fault = str(error)
    raise _Absent(f"TensorFlow Datasets' download from {host}: {fault}")


def _probe(url: str, expected: str) -> str:
    """What is wrong with the web host, within seconds; '' if nothing is.

    TFDS itself tries ten times and without a time limit. A thread sets the
    limit here because looking up a host name knows no time-out.
    """
    answers = []

    def ask() -> None:
        try:
            opener = urllib.request.build_opener()
            with opener.open(url, timeout=5) as response:
                body = response.read(1_000_000)
            if hashlib.sha256(body).hexdigest() == expected:
                answers.append("")
            else:
                answers.append("something else answers in its place")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            answers.append(f"no answer ({reason})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answers[0] if answers else f"no answer in {_PROBE_SECONDS} s"


def _from_installed_package(
    work: Path, record: dict[str, tuple[str, str]]
) -> str:
    if not _INSTALLED.is_dir():
        raise _Absent(f"the package {PACKAGE} in {_INSTALLED}: not installed")
    _gather(_INSTALLED, work, record)
    try:
        query = ["dpkg-query", "-W", "-f=${Version}", PACKAGE]
        version = _run(query, timeout=30)
    except (DataError, FileNotFoundError):
        version = ""
    return f"restored from Debian's {PACKAGE} {version}".rstrip()


def _from_deb_files(
    data_dir: Path, work: Path, record: dict[str, tuple[str, str]]
) -> str:
    folders = dict.fromkeys([data_dir, data_dir / "downloads", Path.cwd()])
    pattern = f"{PACKAGE}*_all.deb"
    debs = [deb for folder in folders for deb in sorted(folder.glob(pattern))]
    faults = []
    for deb in debs:
        try:
            return f"{_from_deb(deb, work, record)} in {deb.parent}"
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("; ".join(faults))
    raise _Absent(f"{pattern} in {', '.join(map(str, folders))}: none")


def _from_deb(deb: Path, work: Path, record: dict[str, tuple[str, str]]) -> str:
    unpacked = work / "unpacked"
    try:
        unpack_deb(deb, unpacked)
        inner = unpacked / _INSTALLED.relative_to("/")
        if not inner.is_dir():
            raise DataError(_corrupt(deb, f"it holds no {_INSTALLED}"))
        _gather(inner, work, record)
    finally:
        _remove(unpacked)
    match = re.fullmatch(rf"{PACKAGE}_([^_]+)_all\.deb", deb.name)
    version = match.group(1).replace("%3a", ":") if match else ""
    return f"restored from Debian's {PACKAGE} {version}".rstrip()


def _from_apt(work: Path, record: dict[str, tuple[str, str]]) -> str:
    _status(f"Fashion-MNIST: fetching Debian's {PACKAGE}")
    options = [
        *("-o", "Acquire::Retries=0"),
        *("-o", "Acquire::http::Timeout=10"),
        *("-o", "Acquire::https::Timeout=10"),
    ]
    if os.geteuid() == 0:
        # Root's apt-get would hand the work to a user who cannot write here.
        options += ["-o", "APT::Sandbox::User=root"]
    private = work / "apt"
    private_options = [
        *("-o", f"Dir::State::Lists={private / 'lists'}"),
        *("-o", f"Dir::Cache={private / 'cache'}"),
        *("-o", "Debug::NoLocking=1"),
        *("-o", "APT::Update::Error-Mode=any"),
        *("-o", "Acquire::Languages=none"),
    ]
    download = ["download", PACKAGE]
    try:
        try:
            _run(["apt-get", *options, *download], timeout=600, cwd=work)
        except DataError as error:
            if "Failed to fetch" in str(error) and " 404 " not in str(error):
                raise
            # A fresh container has no package lists, and an old one stale
            # ones; only root may renew those, so these are private.
            (private / "lists" / "partial").mkdir(parents=True)
            (private / "cache" / "archives" / "partial").mkdir(parents=True)
            options += private_options
            failed_update = None
            try:
                _run(["apt-get", *options, "update"], timeout=60)
            except DataError as error:
                # It may be another list that failed, so go on.
                failed_update = error
            try:
                _run(["apt-get", *options, *download], timeout=600, cwd=work)
            except DataError as error:
                raise failed_update or error from error
    except FileNotFoundError as error:
        raise _Absent(
            f"apt-get download {PACKAGE}: there is no apt-get here"
        ) from error
    except DataError as error:
        raise _Absent(f"apt-get download {PACKAGE}: {error}") from error
    finally:
        _remove(private)
    (deb,) = work.glob("*.deb")
    return _from_deb(deb, work, record)


def _unpack_deb_in_python(deb: Path, folder: Path) -> None:
    try:
        with deb.open("rb") as file:
            name, data = _find_in_ar(file, "data.tar")
        if name.endswith(".zst"):
            raise DataError(
                f"{deb}: is compressed with zstd; install dpkg to unpack it"
            )
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(folder, filter="data")
    except (
        ValueError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        tarfile.TarError,
    ) as error:
        raise DataError(_corrupt(deb, str(error))) from error


def _find_in_ar(file: io.BufferedIOBase, prefix: str) -> tuple[str, bytes]:
    """Returns name and content of the first member named `prefix`..."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError("no ar archive")
    while header := file.read(60):
        if len(header) < 60 or header[58:] != b"`\n":
            raise ValueError("a member's header is damaged")
        name = header[:16].decode("ascii").rstrip().rstrip("/")
        size = int(header[48:58])
        if name.startswith(prefix):
            data = file.read(size)
            if len(data) < size:
                raise ValueError(f"{name} is cut off")
            return name, data
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError(f"it has no member {prefix}")


# --------------------------------------------------------- other processes


def _run(
    command: list[str | Path], timeout: float, cwd: Path | None = None
) -> str:
    """Runs a tool of the system and returns what it printed.

    Raises:
        DataError: it failed; the message is the last line that it printed.
        FileNotFoundError: there is no such tool.
    """
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{error.cmd[0]}: no end in {timeout} s") from error
    if done.returncode:
        _raise_if_no_space(done.stdout)
        raise DataError(_reason(done.stdout, done.returncode))
    return done.stdout.strip()


# TFDS prints much, and a process of its own keeps that from the user. It also
# leaves the devices of the caller's TensorFlow uninitialized, so that they
# can still be configured afterwards.
_CHILD = """
import sys
sys.path[:] = sys.argv[1].split("\\n")
from efficientnetv2.data import fashion_mnist
fashion_mnist._child_main(*sys.argv[2:])
"""


def _run_child(
    function: str, *paths: Path, watched: Path | None = None
) -> None:
    """Runs a function of this module, `_download` or `_build`, in a child.

    Args:
        function: its name.
        *paths: its arguments.
        watched: a folder; if it does not grow for a minute, the child is
            taken to hang, and ended.

    Raises:
        DataError: the function failed.
        OSError: with ENOSPC if the disk is full.
    """
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    # The child ends when this pipe does, so also when this process is killed.
    child_end, our_end = os.pipe()
    try:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _CHILD,
                "\n".join(map(str, sys.path)),
                function,
            ]
            + [os.fspath(path) for path in paths],
            env=environment,
            stdin=child_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    finally:
        os.close(child_end)
    size, grown = -1, time.monotonic()
    try:
        while True:
            try:
                output, _ = child.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                pass
            if watched is None:
                continue
            if _size(watched) != size:
                size, grown = _size(watched), time.monotonic()
            elif time.monotonic() - grown > _STALL_SECONDS:
                raise DataError(f"stalled for {_STALL_SECONDS} s")
    finally:
        os.close(our_end)
        child.kill()
        child.wait()
        child.stdout.close()
    if child.returncode:
        _raise_if_no_space(output)
        raise DataError(_reason(output, child.returncode))


def _child_main(function: str, *paths: str) -> None:
    def end_with_parent() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    globals()[function](*map(Path, paths))


def _download(folder: Path) -> None:
    """Runs in the child: TFDS' download, which verifies the checksums."""
    import tensorflow_datasets as tfds

    manager = tfds.download.DownloadManager(
        download_dir=folder / "tfds", force_checksums_validation=True
    )
    urls = {name: url for name, (url, _) in _record().items()}
    for name, path in manager.download(urls).items():
        os.replace(path, folder / name)


def _build(root: Path, archives: Path) -> None:
    """Runs in the child: TFDS' builder, fed with the archives."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(BUILDER, data_dir=os.fspath(root))
    builder.download_and_prepare(
        download_dir=os.fspath(root / "downloads"),
        download_config=tfds.download.DownloadConfig(
            manual_dir=os.fspath(archives),
            force_checksums_validation=True,
            try_download_gcs=False,
        ),
    )


def _reason(output: str, code: int) -> str:
    """The line that says why a process failed.

    That is the last one, but notes may follow an exception's own line
    (`SomeError: ...`) and the one of apt-get (`E: ...`).
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(E|[\w.]+Error): ", line)]
    return (named or lines or [f"exit status {code}"])[-1]


def _raise_if_no_space(output: str) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in output:
            raise OSError(code, os.strerror(code))


# --------------------------------------------------------- files and locks


@contextlib.contextmanager
def _locked(data_dir: Path, log: Callable[[str], Any]) -> Iterator[None]:
    """Lets one process at a time into `data_dir`.

    The kernel gives the lock of a killed process back, so a file that is
    left behind locks nobody out.
    """
    path = data_dir / _LOCK
    said = False
    while True:
        # The holder before may have removed a folder that it made in vain.
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                log(
                    "Fashion-MNIST: another process is preparing it in "
                    f"{data_dir}; waiting for it to end"
                )
                said = True
            fcntl.flock(file, fcntl.LOCK_EX)
        # The holder before may have removed the file that was waited for.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder; returns those that were made, the deepest first."""
    made = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        made.append(each)
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _leftovers(data_dir: Path) -> list[Path]:
    """What killed processes left.

    TFDS' own `incomplete.*` folders are made by nobody here; one may belong
    to a living process of another program, so only old ones count.
    """
    ours = list(data_dir.glob(f"{_STAGING}*"))
    name, version = BUILDER.split(":")
    horizon = time.time() - _FOREIGN_LEFTOVER_SECONDS
    foreign = [
        folder
        for folder in (data_dir / name).glob(f"incomplete.*_{version}")
        if _newest(folder) < horizon
    ]
    return ours + foreign


def _newest(folder: Path) -> float:
    times = [0.0]
    for each in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            times.append(each.lstat().st_mtime)
    return max(times)


def _size(folder: Path) -> int:
    total = 0
    for each in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += each.lstat().st_size
    return total


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _flush_to_disk(folder: Path) -> None:
    """Lets a power cut leave either no data or all of them."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- messages


def _status(text: str) -> None:
    """Shows on a terminal what is being waited for; '' wipes it away."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turns the system's errors into messages that say what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(_explain(error, data_dir)) from error


def _explain(error: OSError, data_dir: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(data_dir, None)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"Fashion-MNIST cannot be prepared in {data_dir}, which is not "
            f"writable ({error}). Choose another data_dir or change its "
            "permissions."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        path = Path(error.filename or data_dir)
        files = [each for each in (path, *path.parents) if each.is_file()]
        where = files[0] if files else path
        return (
            f"Fashion-MNIST cannot be prepared in {data_dir}: {where} is a "
            "file where a folder is needed. Choose another data_dir or move "
            "the file away."
        )
    return (
        f"Fashion-MNIST cannot be prepared in {data_dir}: {error}. Choose "
        "another data_dir or run the command again."
    )


def _no_space(data_dir: Path, free: int | None) -> str:
    left = "the disk is full" if free is None else f"{free / 1e6:.0f} MB free"
    return (
        f"Fashion-MNIST needs about {NEEDED_BYTES / 1e6:.0f} MB of disk space "
        f"in {data_dir}, and there is too little ({left}). Free some or "
        "choose another data_dir."
    )


def _corrupt(deb: Path, reason: str) -> str:
    return f"{deb}: no complete Debian package ({reason}); remove it"


def _damaged(prepared: Prepared, reason: str) -> str:
    folder = prepared.builder.data_dir
    return (
        f"The prepared Fashion-MNIST in {folder} is damaged ({reason}). "
        "Remove that folder and run the command again."
    )
