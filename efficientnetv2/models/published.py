"""The published weights: which there are, where, and a verified cache.

Nothing here imports Keras.
"""

import os
import pathlib
import shutil
import sys
import tarfile
import tempfile

from efficientnetv2 import progress
from efficientnetv2.errors import WeightsError

_BASE = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
# By the beginning of a model's name. 'imagenet' of V1 is trained with AdvProp,
# 'jft' by Noisy Student.
_FILES = {
    "efficientnetv2-": {
        "imagenet": "v2/{name}.tgz",
        "imagenet21k": "v2/{name}-21k.tgz",
        "imagenet21k-ft1k": "v2/{name}-21k-ft1k.tgz",
    },
    "efficientnet-lite": {"imagenet": "lite/{name}.tar.gz"},
    "efficientnet-": {
        "imagenet": "advprop/{name}.tar.gz",
        "jft": "noisystudent/noisy_student_{name}.tar.gz",
        "jft-475": "noisystudent/noisy_student_{name}_475.tar.gz",
    },
}
NAMES = tuple(
    dict.fromkeys(name for files in _FILES.values() for name in files)
)
CLASSES_21K = 21_843

# Top-1 in % on ImageNet's validation set, single crop, as the authors publish
# it with the weights: google/automl, efficientnetv2/README.md, for V2;
# tensorflow/tpu, models/official/efficientnet/README.md and lite/README.md,
# for V1. None: none is published.
_21K = {"imagenet21k": None}
_BOTH = {**_21K, "imagenet21k-ft1k": None}
TOP1 = {
    "efficientnetv2-b0": {"imagenet": 78.7, **_BOTH},
    "efficientnetv2-b1": {"imagenet": 79.8, **_BOTH},
    "efficientnetv2-b2": {"imagenet": 80.5, **_BOTH},
    "efficientnetv2-b3": {"imagenet": 82.1, **_BOTH},
    "efficientnetv2-s": {"imagenet": 83.9, **_21K, "imagenet21k-ft1k": 84.9},
    "efficientnetv2-m": {"imagenet": 85.2, **_21K, "imagenet21k-ft1k": 86.2},
    "efficientnetv2-l": {"imagenet": 85.7, **_21K, "imagenet21k-ft1k": 86.9},
    "efficientnetv2-xl": {**_21K, "imagenet21k-ft1k": 87.2},
    "efficientnet-b0": {"imagenet": 77.6, "jft": 78.8},
    "efficientnet-b1": {"imagenet": 79.6, "jft": 81.5},
    "efficientnet-b2": {"imagenet": 80.5, "jft": 82.4},
    "efficientnet-b3": {"imagenet": 81.9, "jft": 84.1},
    "efficientnet-b4": {"imagenet": 83.3, "jft": 85.3},
    "efficientnet-b5": {"imagenet": 84.3, "jft": 86.1},
    "efficientnet-b6": {"imagenet": 84.8, "jft": 86.4},
    "efficientnet-b7": {"imagenet": 85.2, "jft": 86.9},
    "efficientnet-b8": {"imagenet": 85.5},
    "efficientnet-lite0": {"imagenet": 75.1},
    "efficientnet-lite1": {"imagenet": 76.7},
    "efficientnet-lite2": {"imagenet": 77.6},
    "efficientnet-lite3": {"imagenet": 79.8},
    "efficientnet-lite4": {"imagenet": 81.5},
    "efficientnet-l2": {"jft": 88.4, "jft-475": 88.2},
}


def url(model_name: str, weights: str) -> str:
    """Returns the address of an archive.

    Raises:
        WeightsError: if there are no such weights of the model.
    """
    there = TOP1.get(model_name, {})
    if weights not in there:
        raise WeightsError(
            f"There are no published weights {weights!r} of {model_name!r}; "
            f"this model has: {', '.join(there) or 'none'}. For your own "
            "weights, give their path."
        )
    family = next(each for each in _FILES if model_name.startswith(each))
    return f"{_BASE}/{_FILES[family][weights].format(name=model_name)}"


def fetch(model_name: str, weights: str) -> pathlib.Path:
    """Returns the prefix of published weights, from Keras' cache or the web.

    The SHA-256 of an archive is noted when it was fetched, and verified each
    time it is used; an archive that differs is fetched again.

    Raises:
        WeightsError: if there are no such weights of the model, they cannot be
            fetched, or the archive is not what it should be.
    """
    import pooch

    address = url(model_name, weights)
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    cache = pathlib.Path(home).expanduser() / "models"
    archive = cache / address.rpartition("/")[2]
    note = archive.with_name(f"{archive.name}.sha256")
    folder = cache / archive.name.partition(".")[0]
    try:
        known = note.read_text().strip() if note.exists() else None
        if known is None:
            # Without a note, what is there may be truncated.
            archive.unlink(missing_ok=True)
        if not archive.exists() or pooch.file_hash(archive) != known:
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


def _download(archive: pathlib.Path, address: str, known: str | None) -> None:
    import pooch

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
        changed = known and (
            f" It was downloaded before with the SHA-256 {known}; if it was "
            f"replaced on purpose, remove {archive}.sha256."
        )
        raise WeightsError(
            f"Cannot fetch {address} ({error}).{changed or ''} Without "
            "internet access, download it elsewhere, extract it, and give the "
            "path of the checkpoint as weights."
        ) from error


def _extract(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        content = pathlib.Path(temporary, "content")
        with tarfile.open(archive) as file:
            file.extractall(content, filter="data")
        content.rename(folder)
