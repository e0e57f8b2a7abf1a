"""Where examples come from: splits of a dataset as arrays in memory."""

import dataclasses
import http.client
import os
import pathlib
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable

import ml_collections
import numpy as np

from efficientnetv2.config import load_dataset_info
from efficientnetv2.data import fashion_mnist
from efficientnetv2.data.fashion_mnist import DataError

DEFAULT_DATA_DIR = "~/.cache/efficientnetv2/data"


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A split whose images have one size.

    Attributes:
        images: uint8 [examples, height, width, channels], 1 or 3 channels.
        labels: int64 [examples], in [0, classes).
        class_names: one name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def data_dir(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Returns `data.data_dir`, or the default under the user's cache."""
    folder = config.data.data_dir or os.environ.get(
        "EFFICIENTNETV2_DATA_DIR", DEFAULT_DATA_DIR
    )
    return pathlib.Path(folder).expanduser()


def parse_slice(text: str) -> tuple[str, slice]:
    """Splits 'train[55000:]' into the split 'train' and a slice.

    Raises:
        ValueError: for any other form.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text)
    if not match:
        raise ValueError(f"{text!r} is no split such as 'train[:55000]'.")
    first, last = (int(part) if part else None for part in match.groups()[1:])
    return match[1], slice(first, last)


def load_split(
    config: ml_collections.ConfigDict,
    split: str,
    log: Callable[[str], None] = print,
) -> ArraySource:
    """Loads a split of the configured dataset, preparing it if needed.

    Args:
        config: of the run.
        split: a name of `datasets/NAME.yaml`.
        log: called with one line that says where the data came from.

    Raises:
        DataError: if the data cannot be had or are not what the registry
            says.
    """
    info = load_dataset_info(config.data.ds_name)
    expected = info["splits"][split]
    name, rows = parse_slice(expected["tfds_split"])
    folder = data_dir(config)
    if info["tfds_name"].startswith("fashion_mnist"):
        prepared = fashion_mnist.prepare(folder, log=log)
        images, labels = fashion_mnist.load_arrays(prepared, name)
    else:
        images, labels = _load_tfds(info["tfds_name"], name, folder, log)
    images, labels = images[rows], labels[rows]
    if len(labels) != expected["num_images"]:
        raise DataError(
            f"{config.data.ds_name}: the split {split!r} has {len(labels):,} "
            f"images in {folder}, not {expected['num_images']:,} as the "
            "registry says. Remove its folder there to prepare it anew."
        )
    return ArraySource(images, labels, list(info["class_names"]))


def _load_tfds(
    name: str, split: str, folder: pathlib.Path, log: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Prepares any builder of TensorFlow Datasets and loads a split."""
    import tensorflow_datasets as tfds

    prepared = False
    try:
        builder = tfds.builder(name, data_dir=folder)
        prepared = builder.data_path.exists()
        if not prepared:
            _probe(pathlib.Path(tfds.__file__).parent, builder.name)
            log(f"{name}: downloading to {folder} ...")
            builder.download_and_prepare()
        examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    except Exception as error:  # TFDS has no common class of errors.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        state = (
            f"the data in {folder} cannot be read"
            if prepared
            else f"not found prepared in {folder}, and no download"
        )
        raise DataError(
            f"{name}: {state} ({reason}). Prepare it on a machine with a "
            f"network by `tfds build {name.split(':')[0]} "
            f"--data_dir={folder}` and copy that folder, or name another one "
            "with --data_dir."
        ) from error
    if prepared:
        log(f"{name}: prepared in {builder.data_path}.")
    return examples["image"], examples["label"]


def _probe(package: pathlib.Path, name: str) -> None:
    """Raises an OSError within seconds if a dataset's host does not answer.

    TFDS itself tries for minutes. The host is read from its checksums.
    """
    checksums = package / "url_checksums" / f"{name}.txt"
    if not checksums.exists():
        return
    url = checksums.read_text().split()[0]
    answers: list[Exception | None] = []

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=5).close()
            answers.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.append(error)

    # Looking up a host name knows no time-out; a thread sets the limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(8)
    host = urllib.parse.urlsplit(url).hostname
    if not answers or answers[0] is not None:
        reason = answers[0] if answers else "no reply in 8 s"
        raise OSError(f"{host} does not answer: {reason}")
