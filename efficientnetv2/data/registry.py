"""The registry of datasets: what each is, before anything is read.

A dataset is a file of `datasets/`, a user's YAML file of the same form, a
folder of images, or a CSV file that lists images.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from efficientnetv2.data import class_list, csv_list, fashion_mnist, folders
from efficientnetv2.data.listing import Listing
from efficientnetv2.declarative import (
    ConfigError,
    declarative_dir,
    named_or_path,
    names,
    suggest,
)
from efficientnetv2.errors import DataError, nearest

DEFAULT_DATA_DIR = "~/.cache/efficientnetv2/data"
_YAML = (".yaml", ".yml")
SOURCES = ("tfds", "tfrecord", "folder", "csv", "idx")
# Sources whose images are single files.
LISTED = ("folder", "csv")
# Of a run whose data are not there, see `remember`.
ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a dataset.

    Attributes:
        num_images: exact number.
        tfds_split: of TensorFlow Datasets, such as 'train[:55000]'.
        part: of the IDX archives, such as 'train[:55000]'.
        files: pattern of TFRecord shards, such as 'train-*'.
        shards: first and last (excluded) of the sorted shards, or None.
    """

    num_images: int
    tfds_split: str | None = None
    part: str | None = None
    files: str | None = None
    shards: tuple[int | None, int | None] = (None, None)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset.

    Attributes:
        name: in the registry, or the path that the user gave.
        source: one of `SOURCES`; 'idx' is Fashion-MNIST's four archives.
        num_classes: number of classes.
        splits: 'train' and 'eval', often 'minival' and 'trainval'.
        class_names: one a class, in the order of the labels.
        recipe: used unless another is named.
        channels: of the stored images: 1 or 3.
        image_shape: [height, width, channels], None if they vary.
        multi_label: whether an image has several classes.
        tfds_name: of the builder, such as 'cifar10'.
        image_key, label_key: features of a TFRecord example.
        label_offset: added to the stored label; -1 where they begin at 1.
        folder: of the images, or the CSV file that lists them.
        license, citation, how_to_get: for people.
    """

    name: str
    source: str
    num_classes: int
    splits: Mapping[str, Split]
    class_names: list[str]
    recipe: str = "finetune"
    channels: int = 3
    image_shape: list[int] | None = None
    multi_label: bool = False
    tfds_name: str | None = None
    image_key: str = "image/encoded"
    label_key: str = "image/class/label"
    label_offset: int = 0
    folder: str | None = None
    license: str = "not stated"
    citation: str = ""
    how_to_get: str = ""


_FIELDS = {
    field.name: field
    for field in dataclasses.fields(DatasetInfo)
    if field.name != "name"
}
_SPLIT_FIELDS = [field.name for field in dataclasses.fields(Split)]
_NEEDED = {"tfds": "tfds_split", "tfrecord": "files", "idx": "part"}


def data_dir(folder: str | None = None) -> pathlib.Path:
    """Returns the folder of the data.

    Args:
        folder: what the user named; None for EFFICIENTNETV2_DATA_DIR, or the
            default below the user's cache.
    """
    folder = folder or os.environ.get("EFFICIENTNETV2_DATA_DIR")
    return folders.expand(folder or DEFAULT_DATA_DIR)


def shard_folders(
    info: DatasetInfo, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Returns where shards are looked for, in this order.

    These are a folder of the dataset's name, that of the data and, for a
    user's YAML file, the one that holds it.

    Args:
        info: of the dataset.
        folder: of the data.
    """
    path = pathlib.Path(info.name)
    beside = [path.parent] if path.suffix in _YAML else []
    return [folder / path.stem, folder, *beside]


def shards(
    info: DatasetInfo, split: Split, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Returns the files of a split of TFRecord shards, in order.

    Args:
        info: of the dataset.
        split: with `files` and `shards`.
        folder: of the data, see `shard_folders`.

    Raises:
        DataError: if no file matches.
    """
    places = shard_folders(info, folder)
    found = {place: sorted(place.glob(split.files)) for place in places}
    place = next((place for place in places if found[place]), None)
    if place is None:
        raise DataError(
            f"{info.name}: no file matches {split.files} in "
            f"{' or '.join(map(str, places))}. {info.how_to_get}".rstrip()
        )
    chosen = found[place][slice(*split.shards)]
    if not chosen:
        raise DataError(
            f"{info.name}: of the {len(found[place])} files {split.files} in "
            f"{place} none is left by shards {list(split.shards)}."
        )
    return chosen


def is_registered(name: str) -> bool:
    """Whether a name is one of `datasets/`, and not that of a file here."""
    return name in names("datasets")


def normalized(name: str) -> str:
    """Returns one name for a dataset, however and wherever it was written.

    Args:
        name: in `datasets/`, which stays, or a path, which becomes absolute.
    """
    path = folders.expand(name)
    if is_registered(name) or not (_is_path(name) or path.is_dir()):
        return name
    return os.path.abspath(path)


def title(name: str) -> str:
    """Returns what a heading calls a dataset: its name, without folders."""
    return name if is_registered(name) else pathlib.Path(name).name


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((*_YAML, *csv_list.SUFFIXES))


def state(info: DatasetInfo, folder: pathlib.Path) -> str:
    """Returns what of a dataset is on this machine, '-' for nothing.

    Args:
        info: of the dataset.
        folder: of the data.
    """
    if info.source in LISTED:
        return "here"
    if info.source == ABSENT:
        return "-"
    if info.source == "idx":
        return "here" if fashion_mnist.is_here(folder) else "-"
    if info.source == "tfds":
        place = folder / info.tfds_name.replace(":", "/")
        return "here" if any(place.rglob("dataset_info.json")) else "-"
    patterns = {split.files for split in info.splits.values()}
    found = {
        path
        for place in shard_folders(info, folder)
        for pattern in patterns
        for path in place.glob(pattern)
    }
    return f"{len(found)} shards" if found else "-"


def load_info(name: str) -> DatasetInfo:
    """Returns what is known of a dataset.

    Args:
        name: in `datasets/`, or the path of a YAML file, of a folder or of a
            CSV file.

    Raises:
        ConfigError: for an unknown name, of which the nearest is given, or a
            YAML file with a mistake.
        DataError: for a folder that is not one of images by class, or a CSV
            file that is none of images and labels.
    """
    try:
        return _load_info(name)
    except (ConfigError, DataError) as error:
        if name not in _remembered:
            raise
        return dataclasses.replace(
            _remembered[name], source=ABSENT, how_to_get=str(error)
        )


_remembered: dict[str, DatasetInfo] = {}


def remember(info: DatasetInfo) -> None:
    """Keeps what a run knows of its data, for where these are not there.

    `load_info` then returns it with the source `ABSENT`; its images cannot be
    loaded.
    """
    _remembered[info.name] = info


def forget() -> None:
    """Lists folders and CSV files again when they are next needed."""
    folders.scan_absolute.cache_clear()
    csv_list.scan.cache_clear()


def listing(path: str | os.PathLike) -> Listing:
    """Returns the images of a folder or of a CSV file.

    Raises:
        DataError: see `folders.scan` and `csv_list.scan`.
    """
    if str(path).endswith(csv_list.SUFFIXES):
        return csv_list.scan(folders.expand(path).absolute())
    return folders.scan(path)


def notes(info: DatasetInfo) -> list[str]:
    """Returns what the user may not expect of a dataset, a line each."""
    if info.source in LISTED:
        return listing(info.folder).notes
    if is_registered(info.name) and pathlib.Path(info.name).is_dir():
        return [
            f"--dataset={info.name} is that of the registry, not the folder "
            f"{info.name}/ here, which is --dataset=./{info.name}."
        ]
    return []


def _load_info(name: str) -> DatasetInfo:
    if is_registered(name) or name.endswith(_YAML):
        return parse_info(name, named_or_path("datasets", name))
    path = folders.expand(name)
    if path.is_dir() or _is_path(name):
        return _listed_info(name, path)
    here = [path.name for path in pathlib.Path(".").iterdir() if path.is_dir()]
    folder = nearest(name, here)
    hint = f" There is a folder {folder!r} here." if folder else ""
    raise ConfigError(
        f"Unknown dataset {name!r}.{hint}"
        + suggest(name, names("datasets"))
        + " Or give the path of a folder of images, of a CSV file or of a "
        "YAML file."
    )


def parse_info(name: str, content: Mapping[str, Any]) -> DatasetInfo:
    """Checks the content of a YAML file.

    Raises:
        ConfigError: names the file, the option and what it should be.
    """

    def fail(text):
        raise ConfigError(f"dataset {name}: {text}")

    for key in content:
        if key not in _FIELDS:
            near = nearest(str(key), _FIELDS)
            hint = f" Did you mean {near!r}?" if near else ""
            fail(f"unknown option {key!r}.{hint}")
    values = dict(content)
    source = values.get("source")
    if source not in SOURCES:
        fail(f"source must be one of {', '.join(SOURCES)}, not {source!r}.")
    if source in LISTED:
        return _parse_listed(name, values, fail)
    if source == "tfds" and not isinstance(values.get("tfds_name"), str):
        fail("source tfds needs 'tfds_name: NAME'.")
    if not isinstance(values.get("splits"), dict):
        fail("needs 'splits:' with train and eval.")
    class_names = values.get("class_names")
    if isinstance(class_names, str):
        class_names = _read_class_names(name, class_names, fail)
    classes = values.get("num_classes", len(class_names or []))
    if not isinstance(classes, int) or classes < 1:
        fail(f"num_classes must be a whole number, not {classes!r}.")
    if class_names is None:
        class_names = [str(index) for index in range(classes)]
    if not isinstance(class_names, list) or len(class_names) != classes:
        fail(f"class_names must be a list of {classes} names, or a file of it.")
    values["num_classes"] = classes
    values["class_names"] = [str(each) for each in class_names]
    values["splits"] = {
        key: _parse_split(split, source, f"{key!r}", fail)
        for key, split in values["splits"].items()
    }
    for key in ("train", "eval"):
        if key not in values["splits"]:
            fail(f"needs a split {key!r}.")
    for key, value in values.items():
        default = _FIELDS[key].default
        if isinstance(default, (bool, int, str)) and not isinstance(
            value, type(default)
        ):
            fail(f"{key} must be like {default!r}, not {value!r}.")
    return DatasetInfo(name=name, **values)


def _read_class_names(name: str, file: str, fail) -> list[str]:
    """Returns the names of a file, which lies where the YAML file does."""
    folder = declarative_dir("datasets")
    if name.endswith(_YAML):
        folder = pathlib.Path(name).parent
    try:
        return list(class_list.read_table(folder / file))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"class_names: cannot read {folder / file}: {error}.")


def _parse_split(content, source: str, label: str, fail) -> Split:
    if not isinstance(content, dict):
        fail(f"split {label} must be a mapping such as {{num_images: 100}}.")
    for key in content:
        if key not in _SPLIT_FIELDS:
            fail(
                f"split {label}: unknown option {key!r}; known: "
                f"{', '.join(_SPLIT_FIELDS)}."
            )
    needed = _NEEDED[source]
    if not isinstance(content.get(needed), str):
        fail(f"split {label} needs '{needed}: ...'.")
    count = content.get("num_images")
    if not isinstance(count, int) or count < 1:
        fail(f"split {label}: num_images must be at least 1, not {count!r}.")
    shards = content.get("shards", [None, None])
    if not (
        isinstance(shards, list)
        and len(shards) == 2
        and all(each is None or isinstance(each, int) for each in shards)
    ):
        fail(f"split {label}: shards must be like [20, null].")
    return Split(**{**content, "shards": tuple(shards)})


def _parse_listed(name: str, values: dict, fail) -> DatasetInfo:
    """Returns a folder or CSV file that a YAML file names."""
    if not isinstance(values.get("folder"), str):
        what = "path" if values["source"] == "folder" else "path.csv"
        fail(f"source {values['source']} needs 'folder: {what}'.")
    for key in ("class_names", "num_classes", "splits", "multi_label"):
        if key in values:
            fail(
                f"{key} is not for source {values['source']}, of which it is "
                f"read. The order of classes is in {class_list.FILE} in the "
                "folder."
            )
    base = pathlib.Path(name).parent if name.endswith(_YAML) else "."
    path = folders.expand(pathlib.Path(base, values["folder"]))
    is_csv = path.name.endswith(csv_list.SUFFIXES)
    if is_csv != (values["source"] == "csv"):
        fail(f"source {values['source']} does not go with {path}.")
    found = _listed_info(name, path)
    return dataclasses.replace(found, **values | {"folder": str(path)})


def _listed_info(name: str, path: pathlib.Path) -> DatasetInfo:
    index = listing(path)
    return DatasetInfo(
        name=name,
        source="csv" if path.name.endswith(csv_list.SUFFIXES) else "folder",
        num_classes=len(index.class_names),
        class_names=index.class_names,
        splits={key: Split(len(part)) for key, part in index.splits.items()},
        recipe="own_images",
        multi_label=index.multi_label,
        folder=str(path),
    )
