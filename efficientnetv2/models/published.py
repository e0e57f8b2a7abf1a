"""The published weights: where they are, and a cache that is verified."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tarfile
import tempfile

import keras

from efficientnetv2.models.naming import WeightsError

_BASE = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
_V2 = {
    "imagenet": "v2/{name}.tgz",
    "imagenet21k": "v2/{name}-21k.tgz",
    "imagenet21k-ft1k": "v2/{name}-21k-ft1k.tgz",
}
# 'imagenet' of V1 is trained with AdvProp, 'jft' by Noisy Student.
_V1 = {
    "imagenet": "advprop/{name}.tar.gz",
    "jft": "noisystudent/noisy_student_{name}.tar.gz",
}
_FILES = {
    **{f"efficientnetv2-{size}": _V2 for size in "b0 b1 b2 b3 s m l".split()},
    "efficientnetv2-xl": {k: v for k, v in _V2.items() if k != "imagenet"},
    **{f"efficientnet-b{size}": _V1 for size in range(8)},
    "efficientnet-b8": {"imagenet": _V1["imagenet"]},
    "efficientnet-l2": {
        "jft": _V1["jft"],
        "jft-475": "noisystudent/noisy_student_{name}_475.tar.gz",
    },
}
NAMES = tuple(dict.fromkeys([*_V2, *_V1, "jft-475"]))
CLASSES_21K = 21_843


def url(model_name: str, weights: str) -> str:
    """Returns the address of an archive.

    Raises:
        WeightsError: if there are no such weights of the model.
    """
    files = _FILES.get(model_name, {})
    if weights not in files:
        raise WeightsError(
            f"There are no published weights {weights!r} of {model_name!r}; "
            f"of this model there are: {', '.join(files) or 'none'}. Give a "
            "path for weights of your own."
        )
    return f"{_BASE}/{files[weights].format(name=model_name)}"


def fetch(model_name: str, weights: str) -> pathlib.Path:
    """Returns the prefix of published weights, from Keras' cache or the web.

    The SHA-256 of an archive is noted when it was fetched, and verified each
    time it is used; an archive that differs is fetched again.

    Args:
        model_name: such as 'efficientnetv2-s'.
        weights: one of `NAMES`.

    Raises:
        WeightsError: if there are no such weights, they cannot be fetched, or
            the archive is not what it should be.
    """
    address = url(model_name, weights)
    cache = _keras_home() / "models"
    archive = cache / address.rpartition("/")[2]
    note = archive.with_name(f"{archive.name}.sha256")
    folder = cache / archive.name.partition(".")[0]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        known = note.read_text().strip() if note.exists() else None
        if known is None or not archive.exists():
            # Without a note, what is there may be cut short.
            archive.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        elif _sha256(archive) != known:
            archive.unlink()
            shutil.rmtree(folder, ignore_errors=True)
        if not archive.exists():
            _download(archive, address, known)
            note.write_text(_sha256(archive) + "\n")
        if not folder.exists():
            _extract(archive, folder)
    except (OSError, tarfile.TarError) as error:
        raise WeightsError(
            f"Cannot keep {archive.name} in {cache}: {error}. Remove "
            f"{archive} and {note} to fetch it again."
        ) from error
    found = sorted(folder.rglob("*.index"))
    if len(found) != 1:
        raise WeightsError(
            f"{archive} should hold one checkpoint (*.index), but holds "
            f"{len(found)}."
        )
    return found[0].with_suffix("")


def _keras_home() -> pathlib.Path:
    """Returns Keras' own folder: KERAS_HOME, by default ~/.keras."""
    return pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


def _download(archive: pathlib.Path, address: str, known: str | None) -> None:
    try:
        keras.utils.get_file(
            archive.name,
            address,
            cache_dir=str(archive.parent.parent),
            cache_subdir="models",
            file_hash=known,
            hash_algorithm="sha256",
        )
    except Exception as error:
        archive.unlink(missing_ok=True)
        changed = (
            f" The archive was fetched before with the SHA-256 {known}; if it "
            f"was replaced on purpose, remove {archive}.sha256."
            if known
            else ""
        )
        raise WeightsError(
            f"Cannot fetch {address} ({error}).{changed} Where there is no "
            "network: download it elsewhere, extract it, and give the path of "
            "the checkpoint as weights."
        ) from error


def _extract(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with contextlib.ExitStack() as stack:
        temporary = tempfile.mkdtemp(dir=folder.parent)
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        with tarfile.open(archive) as file:
            file.extractall(temporary, filter="data")
        os.replace(temporary, folder)


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
