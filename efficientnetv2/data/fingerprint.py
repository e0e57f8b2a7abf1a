"""What a run keeps of its data: the names of its classes, and a fingerprint.

MODEL_DIR/class_names.txt is written once. MODEL_DIR/data.json says how many
images each split and class had, with a hash over the names and sizes of the
files, relative to the data's folder: the same data have the same fingerprint
wherever they lie. MODEL_DIR/data.csv lists these files, so that a difference
can be explained. No image is read.
"""

import collections
import csv
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections

from efficientnetv2.data import class_list, fashion_mnist, registry
from efficientnetv2.data.registry import DatasetInfo, Split
from efficientnetv2.errors import DataError, UserError

FILE = "data.json"
FILES = "data.csv"
OPTION = "data.allow_changes"
_SPLITS = ("train", "minival", "eval")
_COLUMNS = ("file", "label", "split", "bytes")
# Pairs of files of one name and size, whose contents are compared.
_COMPARED = 100

# (split, label, file) to bytes.
Files = dict[tuple[str, str, str], int]


class ChangedDataError(UserError):
    """Data that are not those of the run."""


# --- Taking one -------------------------------------------------------------


def take(
    info: DatasetInfo,
    folder: pathlib.Path,
    images_per_class: int | None = None,
) -> tuple[dict, Files]:
    """Returns the fingerprint of a dataset, and its files.

    Args:
        info: of the dataset.
        folder: of the data.
        images_per_class: `data.images_per_class` of the run.

    Returns:
        (fingerprint, files): the content of `FILE`; of single images and of
        shards, split, label and relative name of each file to its bytes.

    Raises:
        DataError: if the data cannot be obtained.
    """
    content = {
        "dataset": info.name,
        "source": info.source,
        "class_names": list(info.class_names),
        "multi_label": info.multi_label,
    }
    # Runs of all images keep the fingerprint that they had without the option.
    if images_per_class:
        content["images_per_class"] = images_per_class
    splits = [split for split in _SPLITS if split in info.splits]
    images = {split: info.splits[split].num_images for split in splits}
    if info.source in ("tfds", "idx"):
        content["splits"] = {
            split: {"images": images[split], "of": _of(info.splits[split])}
            for split in splits
        }
        if info.source == "tfds":
            return content | _tfds(info.tfds_name, folder), {}
        archives = {
            name: digest for name, (digest, _) in fashion_mnist.ARCHIVES.items()
        }
        return content | {"archives": archives}, {}
    files = (
        _shards(info, splits, folder)
        if info.source == "tfrecord"
        else _images(info, splits)
    )
    content["splits"] = _summary(files, splits, images)
    return content, files


def _take_for(
    config: ml_collections.ConfigDict, info: DatasetInfo
) -> tuple[dict, Files]:
    return take(
        info,
        registry.data_dir(config.data.data_dir),
        config.data.images_per_class,
    )


def _of(split: Split) -> str:
    return split.tfds_split or split.part


def _images(info: DatasetInfo, splits: Iterable[str]) -> Files:
    index = registry.listing(info.folder)
    files: Files = {}
    try:
        for split in splits:
            part = index.splits[split]
            for file, label, name in zip(
                part.files, part.labels, part.names, strict=True
            ):
                labels = label if index.multi_label else [label]
                text = "|".join(index.class_names[k] for k in labels)
                files[split, text, name] = os.stat(file).st_size
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror}."
        ) from None
    return files


def _shards(
    info: DatasetInfo, splits: Iterable[str], folder: pathlib.Path
) -> Files:
    return {
        (split, "", path.name): path.stat().st_size
        for split in splits
        for path in registry.shards(info, info.splits[split], folder)
    }


def _tfds(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Returns name and version of a TFDS dataset.

    The version is that prepared in the folder, None if none is.
    """
    found = sorted(
        path.parent.name
        for path in (folder / name.replace(":", "/")).rglob("dataset_info.json")
    )
    content: dict[str, Any] = {
        "tfds_name": name,
        "version": found[-1] if found else None,
    }
    return content


def _summary(
    files: Files, splits: Iterable[str], images: Mapping[str, int]
) -> dict[str, dict]:
    """Returns images and hash of each split and class."""
    groups: dict[str, dict[str, list]] = {split: {} for split in splits}
    for (split, label, name), size in sorted(files.items()):
        groups[split].setdefault(label, []).append((name, size))
    summary = {}
    for split, classes in groups.items():
        each = {
            label: {"files": len(rows), "sha256": _digest(rows)}
            for label, rows in classes.items()
        }
        summary[split] = {
            "images": images[split],
            "sha256": _digest((k, v["sha256"]) for k, v in each.items()),
            "classes": each,
        }
    return summary


def _digest(rows: Iterable[tuple]) -> str:
    text = "".join(f"{name}\0{value}\n" for name, value in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def to_csv(files: Files) -> str:
    """Returns the content of `FILES`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for (split, label, name), size in sorted(files.items()):
        writer.writerow((name, label, split, size))
    return buffer.getvalue()


# --- What a run has ---------------------------------------------------------


def read(model_dir: str | os.PathLike) -> dict | None:
    """Returns the fingerprint that a run keeps, None if it has none.

    Raises:
        ChangedDataError: if the file is damaged.
    """
    path = pathlib.Path(model_dir) / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["class_names"], content["splits"]["train"]["images"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ChangedDataError(
            f"{path} is damaged ({error!r}). Remove it to have it written anew "
            "from the data as they are."
        ) from None
    return content


def _read_files(model_dir: pathlib.Path) -> Files:
    try:
        with open(model_dir / FILES, encoding="utf-8", newline="") as file:
            return {
                (row["split"], row["label"], row["file"]): int(row["bytes"])
                for row in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        # Without it a difference is found all the same.
        return {}


def class_names(model_dir: str | os.PathLike) -> list[str] | None:
    """Returns the names of a run's classes, None if it left none.

    Raises:
        ChangedDataError: if class_names.txt was edited; shows both lists.
    """
    model_dir = pathlib.Path(model_dir)
    path = model_dir / class_list.FILE
    try:
        names = class_list.read(path) if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise ChangedDataError(f"Cannot read {path}: {error}.") from None
    content = read(model_dir)
    if content is None:
        return names
    if names is not None and names != content["class_names"]:
        lists = class_list.both(
            content["class_names"], names, FILE, class_list.FILE
        )
        raise ChangedDataError(
            f"{path} was edited: it has other names than the run.\n{lists}\n"
            f"Write those of {FILE}, or remove {path}."
        )
    return content["class_names"]


def names_of_run(
    config: ml_collections.ConfigDict, model_dir: str | os.PathLike
) -> list[str]:
    """Returns the names of a run's classes: its own, else its dataset's."""
    names = class_names(model_dir)
    if names is None:
        names = registry.load_info(config.data.ds_name).class_names
    return names


def free_options(
    saved: Mapping, config: ml_collections.ConfigDict, model_dir: pathlib.Path
) -> list[str]:
    """Returns the options that need not agree with a run's `config.yaml`.

    Paths of data may differ: of the same place, or where the run keeps a
    fingerprint, by which it knows its data.

    Args:
        saved: the content of the file.
        config: to compare with.
        model_dir: of the run.
    """
    names = [saved.get("data", {}).get("ds_name"), config.data.ds_name]
    known = read(model_dir) is not None
    same = registry.normalized(str(names[0])) == names[1]
    local = not any(registry.is_registered(str(name)) for name in names)
    return ["data.ds_name"] if same or (local and known) else []


def remember(model_dir: str | os.PathLike, name: str) -> None:
    """Lets a run be used without its data, see `registry.remember`.

    Args:
        model_dir: of the run.
        name: of its dataset, as its configuration has it.
    """
    content = read(model_dir)
    if content is None:
        return
    splits = {
        split: Split(part["images"])
        for split, part in content["splits"].items()
    }
    if "minival" in splits:
        both = splits["train"].num_images + splits["minival"].num_images
        splits["trainval"] = Split(both)
    registry.remember(
        DatasetInfo(
            name=name,
            source=registry.ABSENT,
            num_classes=len(content["class_names"]),
            splits=splits,
            class_names=content["class_names"],
            recipe="own_images",
            multi_label=content["multi_label"],
        )
    )


# --- Comparing --------------------------------------------------------------


def claim(
    config: ml_collections.ConfigDict,
    model_dir: pathlib.Path,
    log: Callable[[str], None],
    begun: bool,
) -> dict[str, str]:
    """Checks that data are those of a run before it trains.

    Args:
        config: of the run.
        model_dir: of the run.
        log: prints one line.
        begun: whether the run has trained before.

    Returns:
        The files that the run is to have: name to content.

    Raises:
        ChangedDataError: if classes have other names or another order, of
            which both lists are shown; or if other images are there, unless
            `data.allow_changes` is set.
    """
    info = registry.load_info(config.data.ds_name)
    _check_names(info, model_dir)
    new, files = _take_for(config, info)
    old = read(model_dir) if begun else None
    if old is None and begun and info.source in registry.LISTED:
        log(
            f"{model_dir} was begun by a version that kept no fingerprint of "
            "its data: whether they are the same is not known, and where "
            "splits are chosen by the names of files they are chosen anew, "
            "so that it may have trained on images of its new validation and "
            "test splits."
        )
    changes = _changes(old, new, model_dir, files) if old else []
    if changes:
        text = "\n".join(f"  {line}" for line in changes)
        if not config.data.allow_changes:
            raise ChangedDataError(
                f"{info.name} has changed since {model_dir} was begun:\n"
                f"{text}\nRestore the data, or name another --model_dir to "
                f"train on them; --hparam_str={OPTION}=true goes on with this "
                "run nevertheless."
            )
        log(f"Going on, although {info.name} has changed:\n{text}")
    for note in _same_in_two(info, files):
        log(note)
    return {
        class_list.FILE: class_list.to_text(info.class_names),
        FILE: json.dumps(new, indent=1, ensure_ascii=False) + "\n",
        **({FILES: to_csv(files)} if files else {}),
    }


def _check_names(info: DatasetInfo, model_dir: pathlib.Path) -> None:
    names = class_names(model_dir)
    if names is None or names == info.class_names:
        return
    # A run of an earlier version may have them in another normal form.
    if list(map(class_list.normal_form, names)) == info.class_names:
        return
    same = sorted(names) == sorted(info.class_names)
    what = "its classes in another order" if same else "classes of other names"
    lists = class_list.both(names, info.class_names, str(model_dir), info.name)
    raise ChangedDataError(
        f"{info.name} has {what} than {model_dir}:\n{lists}\nGive them the "
        "names and the order of the run, or name another --model_dir."
    )


def say_changes(
    config: ml_collections.ConfigDict,
    model_dir: pathlib.Path,
    log: Callable[[str], None],
) -> None:
    """Says if the data of a run are not those that it trained on.

    Nothing is said about other data, nor where the run has no fingerprint.

    Args:
        config: of an evaluation.
        model_dir: of the run.
        log: prints one line.
    """
    old = read(model_dir)
    if old is None or old["dataset"] != config.data.ds_name:
        return
    info = registry.load_info(config.data.ds_name)
    if info.source == registry.ABSENT:
        return
    new, files = _take_for(config, info)
    changes = _changes(old, new, model_dir, files)
    if changes:
        text = "\n".join(f"  {line}" for line in changes)
        log(f"{info.name} has changed since {model_dir} was trained:\n{text}")


def check_is_of_run(
    name: str, of_run: str | None, model_dir: str | os.PathLike
) -> None:
    """Refuses data other than those of a run, wherever they lie now.

    Args:
        name: of the dataset, see `registry.load_info`.
        of_run: name of the run's dataset in its configuration.
        model_dir: of the run.

    Raises:
        ChangedDataError: if they are others.
        UserError: if the dataset cannot be obtained.
    """
    name = registry.normalized(name)
    if name == registry.normalized(str(of_run)):
        return
    old = read(model_dir)
    if old is not None:
        new, _ = take(
            registry.load_info(name),
            registry.data_dir(),
            old.get("images_per_class"),
        )
        if _essence(old) == _essence(new):
            return
    raise ChangedDataError(
        f"--dataset={name}: {model_dir} is a run on {of_run}, and only "
        "--mode=eval takes other images."
    )


def _essence(content: Mapping) -> dict:
    """Returns what decides whether data are the same."""
    return {key: value for key, value in content.items() if key != "dataset"}


def _changes(
    old: Mapping, new: Mapping, model_dir: pathlib.Path, files: Files
) -> list[str]:
    """Returns what differs between two fingerprints, a line each."""
    if _essence(old) == _essence(new):
        return []
    lines = []
    for key in ("source", "tfds_name", "version", "archives", "multi_label"):
        before, now = old.get(key), new.get(key)
        # A dataset that is yet to be prepared has no version.
        if before != now and None not in (before, now):
            lines.append(f"{key}: {before!r} then, {now!r} now")
    before, now = (each.get("images_per_class") for each in (old, new))
    if before != now:
        lines.append(
            f"images per class: {before or 'all'} then, {now or 'all'} now"
        )
    if lines:
        return lines
    before = _read_files(model_dir)
    if _summary_of(before, old) == old["splits"]:
        return _changes_of_files(before, files)
    return _changes_of_counts(old["splits"], new["splits"])


def _summary_of(files: Files, content: Mapping) -> dict:
    images = {k: part["images"] for k, part in content["splits"].items()}
    try:
        return _summary(files, images, images)
    except KeyError:
        return {}


def _changes_of_files(before: Files, now: Files) -> list[str]:
    removed = {key: size for key, size in before.items() if key not in now}
    added = {key: size for key, size in now.items() if key not in before}
    lines = []
    # What went in one place and came in another with its name and size.
    came = collections.defaultdict(list)
    for (split, label, name), size in added.items():
        came[os.path.basename(name), size].append((split, label, name))
    moved = collections.defaultdict(list)
    for key, size in list(removed.items()):
        split, label, name = key
        candidates = came[os.path.basename(name), size]
        # Rather to the same class, and to the same split.
        candidates.sort(key=lambda k: (k[1] == label, k[0] == split))
        if candidates:
            to = candidates.pop()
            del removed[key], added[to]
            way = f"within the class {label!r}"
            if label != to[1]:
                way = f"from the class {label!r} to {to[1]!r}"
            elif split != to[0]:
                way = f"from the split {split!r} to {to[0]!r}"
            moved[way].append(name)
    for way, names in sorted(moved.items()):
        lines.append(_line(f"moved {way}", names))
    for what, keys in (("added", added), ("removed", removed)):
        of_splits = collections.defaultdict(list)
        for split, _, name in keys:
            of_splits[split].append(name)
        for split, names in of_splits.items():
            way = "to" if what == "added" else "from"
            lines.append(_line(f"{what} {way} {split!r}", names))
    resized = [k[2] for k in before if k in now and before[k] != now[k]]
    if resized:
        lines.append(_line("of another size", resized))
    return lines


def _line(what: str, names: list[str]) -> str:
    files = "file" if len(names) == 1 else "files"
    return f"{len(names):,} {files} {what}, such as {names[0]}"


def _changes_of_counts(old: Mapping, new: Mapping) -> list[str]:
    lines = []
    for split in sorted(old.keys() | new.keys()):
        before, now = old.get(split, {}), new.get(split, {})
        if before == now:
            continue
        line = (
            f"{split}: {before.get('images', 0):,} images then, "
            f"{now.get('images', 0):,} now"
        )
        one, other = before.get("classes", {}), now.get("classes", {})
        differ = [
            label
            for label in sorted(one.keys() | other.keys())
            if one.get(label) != other.get(label)
        ]
        if any(differ):
            line += f"; other files of {differ[0]!r}"
            if len(differ) > 1:
                line += f" and {len(differ) - 1:,} more classes"
        elif before.get("of") != now.get("of"):
            line += f"; {before.get('of')} then, {now.get('of')} now"
        lines.append(line)
    return lines


# --- The same image in two splits -------------------------------------------


def _same_in_two(info: DatasetInfo, files: Files) -> list[str]:
    """Returns a line if images of other splits are also in training.

    Only files of one name and size are compared, and only some of them.
    """
    if info.source not in registry.LISTED:
        return []
    index = registry.listing(info.folder)
    paths = {
        (split, name): path
        for split in _SPLITS
        for name, path in zip(
            index.splits[split].names, index.splits[split].files, strict=True
        )
    }
    trained = {
        (os.path.basename(name), size): name
        for (split, _, name), size in files.items()
        if split == "train"
    }
    pairs = [
        (split, name, trained[os.path.basename(name), size])
        for (split, _, name), size in files.items()
        if split != "train" and (os.path.basename(name), size) in trained
    ][:_COMPARED]
    same = [
        (split, name)
        for split, name, other in pairs
        if _bytes(paths[split, name]) == _bytes(paths["train", other])
    ]
    if not same:
        return []
    split, name = same[0]
    least = "At least " if len(pairs) == _COMPARED else ""
    return [
        f"{least}{len(same):,} images of validation or test are also training "
        f"images, such as {name} ({split}): their accuracy says little."
    ]


def _bytes(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
