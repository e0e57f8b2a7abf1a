"""The datasets of the registry, and what of them is on this machine.

python -m efficientnetv2.data
python -m efficientnetv2.data --dataset=cifar10
python -m efficientnetv2.data --dataset=path/to/folder
"""

import pathlib

from absl import app, flags

from efficientnetv2 import cli, declarative, tables
from efficientnetv2.data import registry

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "dataset",
    None,
    "Name in datasets/, a YAML file or a folder of images; default: a table "
    "of all names.",
)
flags.DEFINE_string(
    "data_dir", None, "Folder of the data; default: ~/.cache/efficientnetv2."
)


def _state(info: registry.DatasetInfo, folder: pathlib.Path) -> str:
    """Returns what of a dataset is on this machine, in a word or two."""
    if info.source == "folder":
        return "here"
    if info.source == "tfds":
        place = folder / info.tfds_name.replace(":", "/")
        return "here" if any(place.rglob("dataset_info.json")) else "-"
    patterns = {split.files for split in info.splits.values()}
    shards = {
        path
        for place in (folder / pathlib.Path(info.name).stem, folder)
        for pattern in patterns
        for path in place.glob(pattern)
    }
    return f"{len(shards)} shards" if shards else "-"


def _table(folder: pathlib.Path) -> None:
    lines = [("dataset", "source", "classes", "train", "eval", "here")]
    for name in declarative.names("datasets"):
        info = registry.load_info(name)
        lines.append(
            (
                name,
                info.source,
                f"{info.num_classes:,}",
                f"{info.splits['train'].num_images:,}",
                f"{info.splits['eval'].num_images:,}",
                _state(info, folder),
            )
        )
    print(tables.align(lines, left=[0, 1, 5]))
    print(f"\nLooked for them in {folder}; --dataset=NAME tells more of one.")


def _one(name: str, folder: pathlib.Path) -> None:
    info = registry.load_info(name)
    names = ", ".join(info.class_names[:12])
    more = info.num_classes - 12
    rows = [
        ("classes", f"{info.num_classes:,}: {names}"),
        ("source", " ".join(filter(None, (info.source, info.tfds_name)))),
        ("recipe", info.recipe),
        ("here", f"{_state(info, folder)} (in {info.folder or folder})"),
        ("licence", info.license),
        ("citation", info.citation),
        ("how to get", info.how_to_get),
    ]
    if more > 0:
        rows[0] = (rows[0][0], f"{rows[0][1]} and {more:,} more")
    for split, content in info.splits.items():
        where = content.tfds_split or content.files or ""
        shards = [n for n in content.shards if n is not None]
        text = f"{content.num_images:,} images  {where}"
        if shards:
            text += f", shards {list(content.shards)}"
        rows.append((split, text.rstrip()))
    for label, text in rows:
        if text:
            print(f"{label:12}{text}")


def _run() -> None:
    folder = registry.data_dir(FLAGS.data_dir)
    if FLAGS.dataset:
        _one(FLAGS.dataset, folder)
    else:
        _table(folder)


if __name__ == "__main__":
    app.run(cli.command(_run))
