"""What a run records of its data: the names of its classes, and a fingerprint.

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

import ml_collections

from efficientnetv2.data import fashion_mnist, listing, registry
from efficientnetv2.data.registry import DatasetInfo, Split
from efficientnetv2.errors import DataError, UserError

FILE = "data.json"
FILES = "data.csv"
_SPLITS = ("train", "minival", "eval")

# (split, label, file) to bytes.
Files = dict[tuple[str, str, str], int]


class ChangedDataError(UserError):
    """Data other than the run's."""


def take_fingerprint(
    info: DatasetInfo,
    folder: str | None = None,
    images_per_class: int | None = None,
) -> tuple[dict, Files]:
    """Returns the fingerprint of a dataset, and its files.

    Args:
        folder: `data.data_dir` of the run, see `registry.data_dir`.
        images_per_class: `data.images_per_class` of the run.

    Returns:
        The content of `FILE`; and of single images and shards, split, label
        and relative name of each file to its bytes.

    Raises:
        DataError: if the data cannot be obtained.
    """
    folder = registry.data_dir(folder)
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
        parts = {split: info.splits[split] for split in splits}
        content["splits"] = {
            split: {"images": images[split], "of": part.tfds_split or part.part}
            for split, part in parts.items()
        }
        if info.source == "tfds":
            # A dataset that is yet to be prepared has no version.
            found = [None, *registry.tfds_versions(info, folder)]
            content |= {"tfds_name": info.tfds_name, "version": found[-1]}
        else:
            archives = fashion_mnist.ARCHIVES.items()
            content["archives"] = {
                name: digest for name, (digest, _) in archives
            }
        return content, {}
    if info.source == "tfrecord":
        files = {
            (split, "", path.name): path.stat().st_size
            for split in splits
            for path in registry.shards(info, info.splits[split], folder)
        }
    else:
        files = _images(info, splits)
    content["splits"] = _summary(files, images)
    return content, files


def _images(info: DatasetInfo, splits: Iterable[str]) -> Files:
    index = registry.list_images(info.folder)
    files: Files = {}
    try:
        for split in splits:
            part = index.splits[split]
            for file, label, name in zip(
                part.files, part.labels, part.names, strict=True
            ):
                labels = label if index.multi_label else (label,)
                text = "|".join(index.class_names[k] for k in labels)
                files[split, text, name] = os.stat(file).st_size
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror}."
        ) from None
    return files


def _summary(files: Files, images: Mapping[str, int]) -> dict[str, dict]:
    """Returns images and hash of each split and class."""
    groups: dict[str, dict[str, list]] = {split: {} for split in images}
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


def _to_csv(files: Files) -> str:
    """Returns the content of `FILES`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("file", "label", "split", "bytes"))
    for (split, label, name), size in sorted(files.items()):
        writer.writerow((name, label, split, size))
    return buffer.getvalue()


def read_fingerprint(model_dir: str | os.PathLike) -> dict | None:
    """Returns the fingerprint stored with a run, or None.

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
            f"{path} is damaged ({error!r}). Remove it to have it written "
            "again from the current data."
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
    path = model_dir / listing.NAMES_FILE
    try:
        names = listing.read_names(path) if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise ChangedDataError(f"Cannot read {path}: {error}.") from None
    content = read_fingerprint(model_dir)
    if content is None:
        return names
    known = content["class_names"]
    if names is not None and names != known:
        lists = listing.compare_names(known, names, FILE, listing.NAMES_FILE)
        raise ChangedDataError(
            f"{path} was edited: its names are not the run's.\n{lists}\n"
            f"Restore those of {FILE}, or remove {path}."
        )
    return known


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
    fingerprint, by which it knows its data. `saved` is the file's content.
    """
    names = [saved.get("data", {}).get("ds_name"), config.data.ds_name]
    known = read_fingerprint(model_dir) is not None
    same = registry.normalized(str(names[0])) == names[1]
    local = not any(registry.is_registered(str(name)) for name in names)
    return ["data.ds_name"] if same or (local and known) else []


def remember_dataset(model_dir: str | os.PathLike, name: str) -> None:
    """Lets a run be used without its dataset, see `registry.remember`."""
    content = read_fingerprint(model_dir)
    if content is None:
        return
    images = {k: part["images"] for k, part in content["splits"].items()}
    if "minival" in images:
        images["trainval"] = images["train"] + images["minival"]
    registry.remember(
        DatasetInfo(
            name=name,
            source=registry.ABSENT,
            num_classes=len(content["class_names"]),
            splits={split: Split(count) for split, count in images.items()},
            class_names=content["class_names"],
            recipe="own_images",
            multi_label=content["multi_label"],
        )
    )


def claim(
    config: ml_collections.ConfigDict,
    model_dir: pathlib.Path,
    log: Callable[[str], None],
    begun: bool,
) -> dict[str, str]:
    """Checks before training that the data are the run's.

    Args:
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
    new, files = take_fingerprint(
        info, config.data.data_dir, config.data.images_per_class
    )
    old = read_fingerprint(model_dir) if begun else None
    if old is None and begun and info.source in registry.LISTED:
        log(
            f"{model_dir} was started by a version that kept no fingerprint of "
            "its data, so changes cannot be detected. Splits that depend on "
            "the names of files are drawn again: the run may have trained on "
            "images that are now in its validation or test split."
        )
    changes = _changes(old, new, model_dir, files) if old else ""
    if changes:
        if not config.data.allow_changes:
            raise ChangedDataError(
                f"{info.name} has changed since {model_dir} was started:\n"
                f"{changes}\nRestore the data, or name another --model_dir to "
                "train on them; --hparam_str=data.allow_changes=true "
                "continues this run anyway."
            )
        log(f"Continuing although {info.name} has changed:\n{changes}")
    return {
        listing.NAMES_FILE: listing.names_to_text(info.class_names),
        FILE: json.dumps(new, indent=1, ensure_ascii=False) + "\n",
        **({FILES: _to_csv(files)} if files else {}),
    }


def _check_names(info: DatasetInfo, model_dir: pathlib.Path) -> None:
    names = class_names(model_dir)
    if names is None or names == info.class_names:
        return
    # A run of an earlier version may have them in another normal form.
    if list(map(listing.normal_form, names)) == info.class_names:
        return
    same = sorted(names) == sorted(info.class_names)
    what = "another class order" if same else "other class names"
    lists = listing.compare_names(
        names, info.class_names, str(model_dir), info.name
    )
    raise ChangedDataError(
        f"{info.name} has {what} than {model_dir}:\n{lists}\nUse the names "
        "and the order of the run, or name another --model_dir."
    )


def say_changes(
    config: ml_collections.ConfigDict,
    model_dir: pathlib.Path,
    log: Callable[[str], None],
) -> None:
    """Logs whether a run's data differ from those it was trained on.

    Nothing is said about other data, nor where the run has no fingerprint.
    """
    old = read_fingerprint(model_dir)
    if old is None or old["dataset"] != config.data.ds_name:
        return
    info = registry.load_info(config.data.ds_name)
    if info.source == registry.ABSENT:
        return
    new, files = take_fingerprint(
        info, config.data.data_dir, config.data.images_per_class
    )
    changes = _changes(old, new, model_dir, files)
    if changes:
        log(
            f"{info.name} has changed since {model_dir} was trained:\n{changes}"
        )


def check_is_of_run(
    name: str, of_run: str | None, model_dir: str | os.PathLike
) -> None:
    """Refuses data other than those of a run, wherever they lie now.

    Args:
        name: of the dataset, see `registry.load_info`.
        of_run: name of the run's dataset in its configuration.

    Raises:
        ChangedDataError: if they are others.
        UserError: if the dataset cannot be obtained.
    """
    name = registry.normalized(name)
    if name == registry.normalized(str(of_run)):
        return
    old = read_fingerprint(model_dir)
    if old is not None:
        info = registry.load_info(name)
        new, _ = take_fingerprint(info, None, old.get("images_per_class"))
        # Wherever they lie.
        if new | {"dataset": None} == old | {"dataset": None}:
            return
    raise ChangedDataError(
        f"--dataset={name}: {model_dir} is a run on {of_run}, and only "
        "--mode=eval takes other images."
    )


def _changes(
    old: Mapping, new: Mapping, model_dir: pathlib.Path, files: Files
) -> str:
    """Returns the differences between two fingerprints, one per line."""
    lines = []
    for key in ("source", "tfds_name", "version", "archives", "multi_label"):
        before, now = old.get(key), new.get(key)
        if before != now and None not in (before, now):
            lines.append(f"{key}: {before!r} then, {now!r} now")
    before, now = (each.get("images_per_class", "all") for each in (old, new))
    if before != now:
        lines.append(f"images per class: {before} then, {now} now")
    if not lines and old["splits"] != new["splits"]:
        before = _read_files(model_dir)
        images = {k: part["images"] for k, part in old["splits"].items()}
        is_list = {split for split, *_ in before} <= images.keys()
        if is_list and _summary(before, images) == old["splits"]:
            lines = _changes_of_files(before, files)
        else:
            lines = _changes_of_counts(old["splits"], new["splits"])
    return "\n".join(f"  {line}" for line in lines)


def _changes_of_files(before: Files, now: Files) -> list[str]:
    removed, added = before.keys() - now.keys(), now.keys() - before.keys()
    changes = collections.defaultdict(list)
    # What went in one place and came in another with its name and size.
    came = collections.defaultdict(list)
    for key in sorted(added):
        came[os.path.basename(key[2]), now[key]].append(key)
    for key in sorted(removed):
        split, label, name = key
        # Rather to the same class, and to the same split.
        candidates = came[os.path.basename(name), before[key]]
        candidates.sort(key=lambda k: (k[1] == label, k[0] == split))
        to = candidates.pop() if candidates else None
        added.discard(to)
        if to is None:
            way = f"removed from {split!r}"
        elif label != to[1]:
            way = f"moved from the class {label!r} to {to[1]!r}"
        elif split != to[0]:
            way = f"moved from the split {split!r} to {to[0]!r}"
        else:
            way = f"moved within the class {label!r}"
        changes[way].append(name)
    for split, _, name in sorted(added):
        changes[f"added to {split!r}"].append(name)
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            changes["of another size"].append(key[2])
    return [
        f"{len(names):,} file{'s' * (len(names) > 1)} {way}, such as {names[0]}"
        for way, names in changes.items()
    ]


def _changes_of_counts(old: Mapping, new: Mapping) -> list[str]:
    lines = []
    for split in sorted(old.keys() | new.keys()):
        pair = old.get(split, {}), new.get(split, {})
        then, now = (f" {each['of']}" if "of" in each else "" for each in pair)
        one, other = (each.get("images", 0) for each in pair)
        if pair[0] != pair[1]:
            lines.append(
                f"{split}: {one:,} images{then} then, {other:,}{now} now, not "
                "all the same"
            )
    return lines
