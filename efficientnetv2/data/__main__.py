r"""The datasets of the registry, and what of them is on this machine.

python -m efficientnetv2.data
python -m efficientnetv2.data --dataset=cifar10
python -m efficientnetv2.data --dataset=path/to/folder
python -m efficientnetv2.data preview --dataset=fashion_mnist

python -m efficientnetv2.data export --dataset=fashion_mnist \
    --format=folder --images_per_class=100 --output_dir=photos
python -m efficientnetv2.data check --dataset=path/to/folder

`preview` writes a contact sheet for each stage of a run: what the network
sees, with the labels and their weights below each image. `export` writes a
dataset as a folder of images, or as TFRecord shards with their YAML file.
`check` decodes every image and lists those that cannot be read; the exit
status is then 1.
"""

import pathlib

from absl import flags

from efficientnetv2 import cli, config, declarative, tables
from efficientnetv2.data import fashion_mnist, registry
from efficientnetv2.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "dataset",
    None,
    "Name in datasets/, a YAML file or a folder of images; default: a table "
    "of all names.",
)
flags.DEFINE_string(
    "data_dir",
    None,
    f"Folder of the data; default: {registry.DEFAULT_DATA_DIR}.",
)
flags.DEFINE_string(
    "recipe", None, "For preview, as in efficientnetv2.main; or a YAML file."
)
flags.DEFINE_string("model_name", None, "For preview: name in hparams/models/.")
flags.DEFINE_string("hparam_str", "", "For preview: overrides.")
flags.DEFINE_integer("seed", None, "For preview: seed (train.seed).")
flags.DEFINE_integer(
    "images", 24, "For preview: images on a sheet.", lower_bound=1
)
flags.DEFINE_string(
    "output_dir", None, "For preview and export: folder to write to."
)
flags.DEFINE_enum(
    "format", "folder", ["folder", "tfrecord"], "For export: what to write."
)
flags.DEFINE_integer(
    "images_per_class",
    None,
    "For export: so many of each class and split; default: all.",
    lower_bound=1,
)


def _state(info: registry.DatasetInfo, folder: pathlib.Path) -> str:
    """Returns what of a dataset is on this machine, in a word or two."""
    if info.source == "folder":
        return "here"
    if info.source == "idx":
        return "here" if fashion_mnist.is_here(folder) else "-"
    if info.source == "tfds":
        place = folder / info.tfds_name.replace(":", "/")
        return "here" if any(place.rglob("dataset_info.json")) else "-"
    patterns = {split.files for split in info.splits.values()}
    shards = {
        path
        for place in registry.shard_folders(info, folder)
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
        where = content.tfds_split or content.part or content.files or ""
        shards = [n for n in content.shards if n is not None]
        text = f"{content.num_images:,} images  {where}"
        if shards:
            text += f", shards {list(content.shards)}"
        rows.append((split, text.rstrip()))
    for label, text in rows:
        if text:
            print(f"{label:12}{text}")


def _preview() -> None:
    overrides = {"train.seed": FLAGS.seed, "data.data_dir": FLAGS.data_dir}
    run_config = config.load(
        dataset=FLAGS.dataset,
        model_name=FLAGS.model_name,
        recipe=FLAGS.recipe,
        hparam_str=FLAGS.hparam_str,
        flags={k: v for k, v in overrides.items() if v is not None},
    )
    with cli.importing_tensorflow():
        from efficientnetv2.data import preview
    folder = pathlib.Path(FLAGS.output_dir or preview.FOLDER)
    for path in preview.write(run_config, folder, FLAGS.images):
        print(path)


def _export() -> None:
    if not FLAGS.output_dir:
        raise UserError("--output_dir is missing, such as photos.")
    info = registry.load_info(FLAGS.dataset)
    folder = registry.data_dir(FLAGS.data_dir)
    with cli.importing_tensorflow():
        from efficientnetv2.data import export, sources
    path = export.write(
        info,
        lambda split: sources.load_from(info, split, folder),
        pathlib.Path(FLAGS.output_dir),
        FLAGS.format,
        FLAGS.images_per_class,
    )
    print(f"Written: --dataset={path}")


def _check() -> int:
    info = registry.load_info(FLAGS.dataset)
    folder = registry.data_dir(FLAGS.data_dir)
    with cli.importing_tensorflow():
        from efficientnetv2.data import checks, sources
    wrong = checks.check(
        info, lambda split: sources.load_from(info, split, folder)
    )
    return 1 if wrong else 0


def _run(action: str | None) -> int | None:
    folder = registry.data_dir(FLAGS.data_dir)
    if action and not FLAGS.dataset:
        raise UserError("--dataset is missing, such as fashion_mnist.")
    if action == "preview":
        _preview()
    elif action == "export":
        _export()
    elif action == "check":
        return _check()
    elif FLAGS.dataset:
        _one(FLAGS.dataset, folder)
    else:
        _table(folder)
    return None


if __name__ == "__main__":
    cli.start(cli.command(_run, ["preview", "export", "check"]))
