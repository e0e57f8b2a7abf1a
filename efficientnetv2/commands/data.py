r"""List datasets; see, write or prepare one.

    efficientnetv2 data
    efficientnetv2 data --dataset=cifar10
    efficientnetv2 data preview --dataset=fashion_mnist --output_dir=preview
    efficientnetv2 data export --dataset=fashion_mnist --images_per_class=100 \
        --output_dir=photos
    efficientnetv2 data check --dataset=photos

`preview` writes a contact sheet for each stage of a run: what the network
sees, with the labels and their weights below each image. `export` writes a
dataset as a folder of images, or as TFRecord shards with their YAML file.
`check` decodes every image and lists those that cannot be read; the exit
status is then 1.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli, config, declarative, formatting, quiet
from efficientnetv2.data import registry
from efficientnetv2.errors import UserError

# Classes whose images are counted in a line.
_MOST_SHOWN = 12
ACTIONS = ("preview", "export", "check")


def define_flags(values: flags.FlagValues) -> None:
    cli.define_run_flags(values)
    flags.DEFINE_integer(
        "seed", None, "For preview: seed (train.seed).", flag_values=values
    )
    flags.DEFINE_integer(
        "images",
        24,
        "For preview: images on a sheet.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "For preview and export: folder to write to.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format",
        "folder",
        ["folder", "tfrecord"],
        "For export: folder or tfrecord.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "images_per_class",
        None,
        "For export: so many per class and split; default: all.",
        lower_bound=1,
        flag_values=values,
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> int | None:
    action, *more = words or [None]
    if action is not None and action not in ACTIONS:
        raise UserError(
            f"There is no action {action!r}."
            + declarative.suggest(action, list(ACTIONS))
            + " A dataset is named by --dataset."
        )
    cli.no_words(more)
    folder = registry.data_dir(given.data_dir)
    if action and not given.dataset:
        raise UserError("--dataset is missing, such as fashion_mnist.")
    if action == "preview":
        _preview(given)
    elif action == "export":
        _export(given, folder)
    elif action == "check":
        return _check(given, folder)
    elif given.dataset:
        _one(given.dataset, folder)
    else:
        _table(folder)
    return None


def _place(
    info: registry.DatasetInfo, folder: pathlib.Path
) -> str | pathlib.Path:
    """Returns the folder that holds a dataset, or should."""
    if info.folder or info.source != "tfrecord":
        return info.folder or folder
    places = registry.shard_folders(info, folder)
    patterns = {split.files for split in info.splits.values()}
    for place in places:
        if any(list(place.glob(pattern)) for pattern in patterns):
            return place
    return " or ".join(map(str, places))


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
                registry.state(info, folder),
            )
        )
    print(formatting.table(lines, left=[0, 1, 5]))
    print(f"\nLooked for them in {folder}; --dataset=NAME tells more of one.")


def _one(name: str, folder: pathlib.Path) -> None:
    info = registry.load_info(name)
    names = ", ".join(info.class_names[:12])
    more = info.num_classes - 12
    rows = [
        ("classes", f"{info.num_classes:,}: {names}"),
        ("source", " ".join(filter(None, (info.source, info.tfds_name)))),
        ("recipe", info.recipe),
        ("here", f"{registry.state(info, folder)} (in {_place(info, folder)})"),
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
        if info.source in registry.LISTED:
            text += _by_class(registry.listing(info.folder).counts(split))
        rows.append((split, text.rstrip()))
    rows += [("note", note) for note in registry.notes(info)]
    for label, text in rows:
        if text:
            print(f"{label:12}{text}")


def _by_class(counts: dict[str, int]) -> str:
    """Returns the images of each class, or of the smallest and largest."""
    ordered = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    if len(ordered) > _MOST_SHOWN:
        ordered = [ordered[0], ("...", None), ordered[-1]]
    return ", ".join(
        name if count is None else f"{name} {count:,}"
        for name, count in ordered
    )


def _preview(given: flags.FlagValues) -> None:
    overrides = {"train.seed": given.seed, "data.data_dir": given.data_dir}
    run_config = config.load(
        dataset=given.dataset,
        model_name=given.model_name,
        recipe=given.recipe,
        hparam_str=given.hparam_str,
        flags={k: v for k, v in overrides.items() if v is not None},
    )
    with quiet.importing_tensorflow():
        from efficientnetv2.data import preview
    folder = pathlib.Path(given.output_dir or preview.FOLDER)
    for path in preview.write(run_config, folder, given.images):
        print(path)


def _export(given: flags.FlagValues, folder: pathlib.Path) -> None:
    if not given.output_dir:
        raise UserError("--output_dir is missing, such as photos.")
    info = registry.load_info(given.dataset)
    with quiet.importing_tensorflow():
        from efficientnetv2.data import export, sources
    path = export.write(
        info,
        lambda split: sources.load_from(info, split, folder),
        pathlib.Path(given.output_dir),
        given.format,
        given.images_per_class,
    )
    written = registry.load_info(str(path))
    counts = {
        split: written.splits[split].num_images
        for split in ("train", "minival", "eval")
        if split in written.splits
    }
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"{sum(counts.values()):,} images ({parts}) in {given.output_dir}")
    name = pathlib.Path(given.output_dir).name
    print(
        f"Train on them: {formatting.program()} train --dataset={path} "
        f"--model_dir=runs/{name}"
    )


def _check(given: flags.FlagValues, folder: pathlib.Path) -> int:
    info = registry.load_info(given.dataset)
    with quiet.importing_tensorflow():
        from efficientnetv2.data import checks, sources
    wrong = checks.check(
        info, lambda split: sources.load_from(info, split, folder)
    )
    return 1 if wrong else 0
