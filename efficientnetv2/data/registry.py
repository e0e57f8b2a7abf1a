"""The registry of datasets: what each is, before anything is read.

A dataset is a file of `datasets/`, a user's YAML file of the same form, a
folder of images, or a CSV file that lists images.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from efficientnetv2 import schema
from efficientnetv2.data import fashion_mnist, folders
from efficientnetv2.data.listing import (
    NAMES_FILE,
    Listing,
    is_csv,
    read_names_in_words,
    scan_csv,
)
from efficientnetv2.declarative import (
    ConfigError,
    declarative_dir,
    named_or_path,
    names,
    suggest,
)
from efficientnetv2.errors import DataError, nearest
from efficientnetv2.schema import option

DEFAULT_DATA_DIR = "~/.cache/efficientnetv2/data"
_YAML = (".yaml", ".yml")
SOURCES = ("tfds", "tfrecord", "folder", "csv", "idx")
# Sources whose images are single files.
LISTED = ("folder", "csv")
# Of a run whose data are not there, see `remember`.
ABSENT = "absent"


def _check_shards(value: list) -> None:
    if len(value) != 2 or not all(type(n) in (int, type(None)) for n in value):
        raise ValueError(f"{value!r} is not like [20, null].")


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a dataset."""

    num_images: int = option(help="exact number", low=1)
    tfds_split: str | None = option(
        None, "of TensorFlow Datasets, such as 'train[:55000]'"
    )
    part: str | None = option(
        None, "of the IDX archives, such as 'train[:55000]'"
    )
    files: str | None = option(
        None, "pattern of TFRecord shards, such as 'train-*'"
    )
    shards: list = option(
        (None, None),
        "first and last (excluded) of the sorted shards",
        check=_check_shards,
    )


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset; without `name`, also the form of its file."""

    name: str = option(help="in the registry, or the path the user gave")
    source: Literal[SOURCES] = option(help="idx: Fashion-MNIST's four archives")
    num_classes: int = option(help="number of classes", low=1)
    splits: dict = option(help="train and eval, often minival and trainval")
    class_names: list = option(help="one per class, in the order of labels")
    recipe: str = option("finetune", "used unless another is named")
    channels: int = option(3, "of the stored images: 1 or 3", 1, 3)
    image_shape: list | None = option(
        None, "[height, width, channels], null if they vary"
    )
    multi_label: bool = option(False, "whether an image has several classes")
    tfds_name: str | None = option(None, "of the builder, such as cifar10")
    image_key: str = option("image/encoded", "feature of a TFRecord example")
    label_key: str = option("image/class/label", "likewise, of the label")
    label_offset: int = option(
        0, "added to the stored label; -1 where they begin at 1"
    )
    folder: str | None = option(
        None, "of the images, or the CSV file that lists them"
    )
    license: str = option("not stated", "for people")
    citation: str = option("", "for people")
    how_to_get: str = option("", "for people")


_NEEDED = {"tfds": "tfds_split", "tfrecord": "files", "idx": "part"}


def data_dir(folder: str | None = None) -> pathlib.Path:
    """Returns the folder of the data.

    That is what the user named, else EFFICIENTNETV2_DATA_DIR, else one below
    the user's cache.
    """
    folder = folder or os.environ.get("EFFICIENTNETV2_DATA_DIR")
    return folders.expand(folder or DEFAULT_DATA_DIR)


def shard_folders(
    info: DatasetInfo, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Returns where shards are looked for, in this order.

    These are a folder of the dataset's name, that of the data and, for a
    user's YAML file, the one that holds it.
    """
    path = pathlib.Path(info.name)
    beside = [path.parent] if path.suffix in _YAML else []
    return [folder / path.stem, folder, *beside]


def shards(
    info: DatasetInfo, split: Split, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Returns the files of a split of TFRecord shards, in order.

    Args:
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
            f"{info.name}: shards {list(split.shards)} select none of the "
            f"{len(found[place])} files {split.files} in {place}."
        )
    return chosen


def is_registered(name: str) -> bool:
    """Whether a name is one of `datasets/`, and not that of a file here."""
    return name in names("datasets")


def normalized(name: str) -> str:
    """Returns one name for a dataset: a path becomes absolute."""
    path = folders.expand(name)
    if is_registered(name) or not (_is_path(name) or path.is_dir()):
        return name
    return os.path.abspath(path)


def title(name: str) -> str:
    """Returns what a heading calls a dataset: its name, without folders."""
    return name if is_registered(name) else pathlib.Path(name).name


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(_YAML) or is_csv(name)


def num_images(
    info: DatasetInfo, split: str, config: ml_collections.ConfigDict
) -> int:
    """Returns the images of a split as a run with this config sees it.

    Of the training split there may be fewer, see `data.images_per_class`.
    """
    per_class = config.data.images_per_class
    if per_class and split == config.train.split:
        return per_class * info.num_classes
    return info.splits[split].num_images


def state(info: DatasetInfo, folder: pathlib.Path) -> str:
    """Returns what this machine has of a dataset, '-' for nothing."""
    if info.source == "tfrecord":
        found = {
            path
            for place in shard_folders(info, folder)
            for split in info.splits.values()
            for path in place.glob(split.files)
        }
        return f"{len(found)} shards" if found else "-"
    here = (
        info.source in LISTED
        or (info.source == "idx" and fashion_mnist.is_here(folder))
        or (info.source == "tfds" and tfds_versions(info, folder))
    )
    return "here" if here else "-"


def tfds_versions(info: DatasetInfo, folder: pathlib.Path) -> list[str]:
    """Returns the prepared versions of a TFDS dataset, the newest last."""
    place = folder / info.tfds_name.replace(":", "/")
    return sorted(path.parent.name for path in place.rglob("dataset_info.json"))


def load_info(name: str) -> DatasetInfo:
    """Returns what is known of a dataset.

    Args:
        name: in `datasets/`, or the path of a YAML file, of a folder or of a
            CSV file.

    Raises:
        ConfigError: for an unknown name (with the nearest valid one), or a YAML
            file with a mistake.
        DataError: for a folder without images by class, or a CSV file that does
            not list images and labels.
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
    """Registers what a run knows of its data, for use without the data.

    `load_info` then returns it with the source `ABSENT`; its images cannot be
    loaded.
    """
    _remembered[info.name] = info


def forget() -> None:
    """Lists folders and CSV files again when they are next needed."""
    folders.scan.cache_clear()
    scan_csv.cache_clear()


def list_images(path: str | os.PathLike) -> Listing:
    """Returns the images of a folder or of a CSV file.

    Raises:
        DataError: see `folders.scan` and `scan_csv`.
    """
    scan = scan_csv if is_csv(path) else folders.scan
    return scan(folders.expand(path).absolute())


def notes(info: DatasetInfo) -> list[str]:
    """Returns what the user may not expect of a dataset, one per line."""
    if info.source in LISTED:
        return list_images(info.folder).notes
    if is_registered(info.name) and pathlib.Path(info.name).is_dir():
        return [
            f"--dataset={info.name} is the registered dataset, not the folder "
            f"{info.name}/ here, which is --dataset=./{info.name}."
        ]
    return []


def _load_info(name: str) -> DatasetInfo:
    if is_registered(name) or name.endswith(_YAML):
        return parse_info(name, named_or_path("datasets", name))
    path = folders.expand(name)
    if path.is_dir() or _is_path(name):
        return _listed_info(name, path)
    folder = nearest(
        name, [p.name for p in pathlib.Path().iterdir() if p.is_dir()]
    )
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
    where, values = f"dataset {name}", dict(content)
    if values.get("source") in LISTED:
        return _parse_listed(name, values, where)
    classes, class_names = values.get("num_classes"), values.get("class_names")
    if isinstance(class_names, str):
        class_names = _read_class_names(name, class_names, where)
    if classes is None:
        classes = len(class_names or [])
    known = schema.list_options(DatasetInfo)["num_classes"]
    classes = known.convert(classes, where)
    if class_names is None:
        class_names = list(range(classes))
    if not isinstance(class_names, list) or len(class_names) != classes:
        raise ConfigError(
            f"{where}: class_names must be a list of {classes} names, or a "
            "file of it."
        )
    values["num_classes"] = classes
    values["class_names"] = [str(each) for each in class_names]
    values = schema.check_values(DatasetInfo, values, where, leave=("name",))
    source = values["source"]
    if source == "tfds" and not values.get("tfds_name"):
        raise ConfigError(f"{where}: source tfds needs 'tfds_name: NAME'.")
    values["splits"] = {
        key: _parse_split(split, source, f"{where}: split {key!r}")
        for key, split in values["splits"].items()
    }
    for key in ("train", "eval"):
        if key not in values["splits"]:
            raise ConfigError(f"{where} needs a split {key!r}.")
    return DatasetInfo(name=name, **values)


def _read_class_names(name: str, file: str, where: str) -> list[str]:
    """Returns the names of a file, which lies where the YAML file does."""
    folder = declarative_dir("datasets")
    if name.endswith(_YAML):
        folder = pathlib.Path(name).parent
    try:
        return list(read_names_in_words(folder / file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}: class_names: cannot read {folder / file}: {error}."
        ) from None


def _parse_split(content: Any, source: str, where: str) -> Split:
    values = schema.check_values(Split, content, where)
    if not values.get(_NEEDED[source]):
        raise ConfigError(f"{where} needs '{_NEEDED[source]}: ...'.")
    return Split(**values | {"shards": tuple(values.get("shards", [None] * 2))})


def _parse_listed(name: str, values: dict, where: str) -> DatasetInfo:
    """Returns a folder or CSV file that a YAML file names."""
    source = values["source"]
    if not isinstance(values.get("folder"), str):
        what = "path" if source == "folder" else "path.csv"
        raise ConfigError(f"{where}: source {source} needs 'folder: {what}'.")
    of_folder = ("class_names", "num_classes", "splits", "multi_label")
    for key in of_folder:
        if key in values:
            raise ConfigError(
                f"{where}: {key} does not apply to source {source}, whose "
                f"folder determines it; {NAMES_FILE} in the folder sets "
                "the order of the classes."
            )
    values = schema.check_values(
        DatasetInfo, values, where, ("name", *of_folder)
    )
    base = pathlib.Path(name).parent if name.endswith(_YAML) else "."
    path = folders.expand(pathlib.Path(base, values["folder"]))
    if is_csv(path) != (source == "csv"):
        raise ConfigError(f"{where}: source {source} does not go with {path}.")
    found = _listed_info(name, path)
    return dataclasses.replace(found, **values | {"folder": str(path)})


def _listed_info(name: str, path: pathlib.Path) -> DatasetInfo:
    index = list_images(path)
    return DatasetInfo(
        name=name,
        source="csv" if is_csv(path) else "folder",
        num_classes=len(index.class_names),
        class_names=index.class_names,
        splits={key: Split(len(part)) for key, part in index.splits.items()},
        recipe="own_images",
        multi_label=index.multi_label,
        folder=str(path),
    )
