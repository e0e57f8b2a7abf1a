"""The published weights: where they are, and a cache that is verified."""

import os
import pathlib
import shutil
import sys
import tarfile
import tempfile

import pooch

from efficientnetv2 import progress
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
    **{
        f"efficientnet-lite{size}": {"imagenet": "lite/{name}.tar.gz"}
        for size in range(5)
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
            f"this model has: {', '.join(files) or 'none'}. For your own "
            "weights, give their path."
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
        known = note.read_text().strip() if note.exists() else None
        if known is None or not archive.exists():
            # Without a note, what is there may be truncated.
            archive.unlink(missing_ok=True)
        if known is None or not _is(archive, known):
            shutil.rmtree(folder, ignore_errors=True)
            _download(archive, address, known)
            note.write_text(f"{pooch.file_hash(archive)}\n")
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


def _is(archive: pathlib.Path, known: str) -> bool:
    return archive.exists() and pooch.file_hash(archive) == known


def _download(archive: pathlib.Path, address: str, known: str | None) -> None:
    try:
        pooch.retrieve(
            address,
            known_hash=known,
            fname=archive.name,
            path=archive.parent,
            progressbar=progress.redraws(sys.stderr),
        )
    except Exception as error:
        archive.unlink(missing_ok=True)
        changed = (
            f" It was downloaded before with the SHA-256 {known}; if it was "
            f"replaced on purpose, remove {archive}.sha256."
            if known
            else ""
        )
        raise WeightsError(
            f"Cannot fetch {address} ({error}).{changed} Without internet "
            "access, download it elsewhere, extract it, and give the path of "
            "the checkpoint as weights."
        ) from error


def _extract(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        content = pathlib.Path(temporary, "content")
        with tarfile.open(archive) as file:
            file.extractall(content, filter="data")
        content.rename(folder)
