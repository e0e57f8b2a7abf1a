"""The commands that list: datasets, models and runs."""

import csv
import functools
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import (
    backend,
    catalog,
    cli,
    declarative,
    formatting,
    overview,
)
from efficientnetv2 import config as config_lib
from efficientnetv2.cli import Flag
from efficientnetv2.commands.run import load_config
from efficientnetv2.data import registry
from efficientnetv2.errors import UserError
from efficientnetv2.models import structure
from efficientnetv2.overview import RunEntry

# Classes in a line.
_MOST_SHOWN = 12
_HEAD = ("run", "dataset", "model", "top-1", "of", "minutes", "state")


@cli.command(
    "dataset model_name recipe hparam_str data_dir",
    Flag("seed", "For preview: seed (train.seed).", int),
    Flag("images", "For preview: images on a sheet.", int, 24, low=1),
    Flag("output_dir", "For preview and export: folder to write to."),
    Flag(
        "format",
        "For export: folder or tfrecord.",
        default="folder",
        choices=("folder", "tfrecord"),
    ),
    Flag(
        "images_per_class",
        "For export: images per class and split; default: all.",
        int,
        low=1,
    ),
)
def data(given: flags.FlagValues, words: Sequence[str]) -> int | None:
    r"""List datasets; preview, export or check one.

        efficientnetv2 data
        efficientnetv2 data --dataset=cifar10
        efficientnetv2 data preview --dataset=fashion_mnist --output_dir=preview
        efficientnetv2 data export --dataset=fashion_mnist --output_dir=photos \
            --images_per_class=100
        efficientnetv2 data check --dataset=photos

    `preview` writes a contact sheet for each stage of a run: the images as the
    network sees them, above their labels. `export` writes a dataset as a folder
    of images, or as TFRecord shards with their YAML file. `check` decodes every
    image and lists those that cannot be read; the exit status is then 1.
    """
    action, *more = words or [None]
    actions = {"preview": _preview, "export": _export, "check": _check}
    if action is not None and action not in actions:
        raise UserError(
            f"Unknown action {action!r}."
            + declarative.suggest(action, list(actions))
            + " Name a dataset with --dataset."
        )
    cli.no_words(more)
    folder = registry.data_dir(given.data_dir)
    if action and not given.dataset:
        raise UserError("Set --dataset, for example --dataset=fashion_mnist.")
    if action:
        return actions[action](given, folder)
    return _dataset(given.dataset, folder) if given.dataset else _list(folder)


def _place(
    info: registry.DatasetInfo, folder: pathlib.Path
) -> str | pathlib.Path:
    """Returns the folder that holds a dataset, or would hold it."""
    if info.folder or info.source != "tfrecord":
        return info.folder or folder
    places = registry.shard_folders(info, folder)
    patterns = {split.files for split in info.splits.values()}
    for place in places:
        if any(list(place.glob(pattern)) for pattern in patterns):
            return place
    return " or ".join(map(str, places))


def _list(folder: pathlib.Path) -> None:
    lines = [("dataset", "source", "classes", "train", "eval", "here")]
    for name in declarative.names("datasets"):
        info = registry.load_info(name)
        parts = (info.splits[split] for split in ("train", "eval"))
        counts = (f"{part.num_images:,}" for part in parts)
        here = registry.state(info, folder)
        lines.append(
            (name, info.source, f"{info.num_classes:,}", *counts, here)
        )
    print(formatting.align_table(lines, left=[0, 1, 5]))
    print(f"\nSearched {folder}\n--dataset=NAME shows the details of one.")


def _dataset(name: str, folder: pathlib.Path) -> None:
    info = registry.load_info(name)
    names = ", ".join(info.class_names[:_MOST_SHOWN])
    more = info.num_classes - _MOST_SHOWN
    names += f" and {more:,} more" if more > 0 else ""
    state, place = registry.state(info, folder), _place(info, folder)
    found = {"-": "not found", "here": "found"}.get(state, state)
    rows = [
        ("classes", f"{info.num_classes:,}: {names}"),
        ("source", " ".join(filter(None, (info.source, info.tfds_name)))),
        ("recipe", info.recipe),
        ("data", f"{found} in {place}"),
        ("licence", info.license),
        ("citation", info.citation),
        ("how to get", info.how_to_get),
    ]
    for split, content in info.splits.items():
        where = content.tfds_split or content.part or content.files or ""
        shards = [n for n in content.shards if n is not None]
        text = f"{content.num_images:,} images  {where}"
        if shards:
            text += f", shards {list(content.shards)}"
        if info.source in registry.LISTED:
            text += _by_class(registry.list_images(info.folder).counts(split))
        rows.append((split, text.rstrip()))
    rows += [("note", note) for note in registry.notes(info)]
    for label, text in rows:
        if text:
            line = f"{label:12}{text}"
            print(formatting.wrapped(line, sys.stdout, indent=" " * 12))


def _by_class(counts: dict[str, int]) -> str:
    """Returns the images of each class, or of the smallest and largest."""
    ordered = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    if len(ordered) > _MOST_SHOWN:
        ordered = [ordered[0], ("...", None), ordered[-1]]
    return ", ".join(
        name if count is None else f"{name} {count:,}"
        for name, count in ordered
    )


def _preview(given: flags.FlagValues, _) -> None:
    config = load_config(given)
    with backend.importing_tensorflow():
        from efficientnetv2.data import output
    folder = pathlib.Path(given.output_dir or output.PREVIEW)
    for path in output.write_preview(config, folder, given.images):
        print(path)


def _export(given: flags.FlagValues, folder: pathlib.Path) -> None:
    if not given.output_dir:
        raise UserError("Set --output_dir, for example --output_dir=photos.")
    info = registry.load_info(given.dataset)
    with backend.importing_tensorflow():
        from efficientnetv2.data import loading, output
    path = output.write_dataset(
        info,
        functools.partial(loading.load_from, info, folder=folder),
        pathlib.Path(given.output_dir),
        given.format,
        given.images_per_class,
    )
    written = registry.load_info(str(path))
    splits = [s for s in ("train", "minival", "eval") if s in written.splits]
    counts = [written.splits[split].num_images for split in splits]
    parts = ", ".join(map("{} {:,}".format, splits, counts))
    print(f"{sum(counts):,} images ({parts}) in {given.output_dir}")
    run = pathlib.Path("runs", pathlib.Path(given.output_dir).name)
    if run == pathlib.Path(given.output_dir):
        run = run.with_name(f"{run.name}_model")
    print("Train on them:")
    print(
        formatting.wrap_command(
            f"{formatting.program()} train",
            f"--dataset={formatting.quote(path)}",
            f"--model_dir={formatting.quote(run)}",
        )
    )


def _check(given: flags.FlagValues, folder: pathlib.Path) -> int:
    info = registry.load_info(given.dataset)
    with backend.importing_tensorflow():
        from efficientnetv2.data import faults, loading
    load = functools.partial(loading.load_from, info, folder=folder)
    return 1 if faults.check_dataset(info, load) else 0


@cli.command(
    Flag(
        "model_name", "Name in hparams/models/, or a YAML file; default: all."
    ),
    Flag(
        "image_size",
        "Side of the image in pixels; default: the model's own.",
        int,
        low=1,
    ),
    Flag("num_classes", "Number of classes.", int, 1000, low=1),
    Flag(
        "hparam_str",
        "Options of the model, such as model.fused_stages=3.",
        default="",
    ),
)
def models(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""List models, or the stages of one, with parameters and multiply-adds.

        efficientnetv2 models
        efficientnetv2 models --model_name=efficientnetv2-s
        efficientnetv2 models --model_name=efficientnet-b4 \
            --hparam_str=model.fused_stages=3

    Top-1 is ImageNet accuracy as published with the weights.
    """
    cli.no_words(words)
    return _model(given) if given.model_name else _models(given)


def _load_model(name: str, given: flags.FlagValues) -> tuple[dict, int]:
    """Returns the section `model` and the image size in pixels."""
    overrides = config_lib.parse_hparam_str(given.hparam_str)
    other = sorted(overrides.keys() - {"model"})
    if other:
        raise UserError(
            f"--hparam_str: {other[0]!r} does not affect a model; only options "
            "of the section 'model' do."
        )
    options = {"num_classes": given.num_classes, **overrides.get("model", {})}
    config = config_lib.load_model(name, options)
    return config["model"], given.image_size or config["eval"]["isize"]


def _model(given: flags.FlagValues) -> None:
    name = given.model_name
    model, size = _load_model(name, given)
    print(
        f"{model['model_name']} at {size}x{size} pixels, "
        f"{model['num_classes']:,} classes"
    )
    print(structure.format_counts(structure.count_stages(model, size)))
    sums = structure.count_model(model, size)
    print(
        f"{sums.parameters:,} parameters, {sums.trainable:,} of them "
        f"trainable; {formatting.format_count(sums.multiply_adds)} "
        "multiply-adds"
    )
    if name in declarative.names("models"):
        for entry in catalog.list_weights(name):
            top1 = (
                f"top-1 {entry.top1:.1%}"
                if entry.top1
                else "top-1 not published"
            )
            print(f"published weights {entry.weights}: {top1}")


def _models(given: flags.FlagValues) -> None:
    head = "model,image size,blocks,parameters,multiply-adds"
    lines = [(*head.split(","), "ImageNet top-1", "with more data")]
    for name in declarative.names("models"):
        model, size = _load_model(name, given)
        sums = structure.count_model(model, size)
        top1 = catalog.model_entry(name).top1
        further = [value for key, value in top1.items() if key != "imagenet"]
        counts = map(
            formatting.format_count, (sums.trainable, sums.multiply_adds)
        )
        best = map(_percent, (top1.get("imagenet"), max(further, default=None)))
        lines.append((name, str(size), str(sums.layers - 3), *counts, *best))
    print(formatting.align_table(lines, left=[0]))
    print(
        "\nTop-1 as published with the weights.\n"
        "With more data: pretrained on ImageNet-21k (V2) or JFT (V1)."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


@cli.command(
    Flag("csv", "Print as CSV.", bool, default=False),
    Flag("plot", "Plot the curves of the runs to this PNG file."),
)
def runs(given: flags.FlagValues, words: Sequence[str]) -> None:
    """List the runs in a folder, or compare some: options, results, curves.

        efficientnetv2 runs runs/
        efficientnetv2 runs runs/ --csv > runs.csv
        efficientnetv2 runs runs/first runs/second --plot=curves.png

    Top-1 is on the test split, or on validation until the run is tested.
    """
    folders = list(words) or ["runs"]
    if len(folders) > 1:
        found = [overview.read(folder) for folder in folders]
        names = [str(run.path) for run in found]
        _compare(found, names, given.csv)
    else:
        found = overview.find(folders[0])
        names = [os.path.relpath(run.path, folders[0]) for run in found]
        rows = [
            _row(run, name, given.csv)
            for run, name in zip(found, names, strict=True)
        ]
        _print([_HEAD, *rows], given.csv, (0, 1, 2, 4, 6))
    if given.plot:
        path = overview.draw_curves(found, names, given.plot)
        print(f"Curves: {path}", file=sys.stderr)


def _row(run: RunEntry, name: str, as_csv: bool) -> tuple[str, ...]:
    """Returns what `_HEAD` names; numbers are rounded for people."""
    forms = ("{}", "{}") if as_csv else ("{:.2%}", "{:.1f}")
    none = "" if as_csv else "-"
    top1, minutes = (
        none if value is None else form.format(value)
        for form, value in zip(forms, (run.top1, run.minutes), strict=True)
    )
    names = (name, run.dataset, run.model)
    return (*names, top1, run.split or none, minutes, run.state)


def _compare(
    runs: Sequence[RunEntry], names: Sequence[str], as_csv: bool
) -> None:
    rows = [("", *names)]
    columns = [
        _row(run, name, as_csv) for run, name in zip(runs, names, strict=True)
    ]
    rows += list(zip(_HEAD, *columns, strict=True))[1:]
    options = overview.differing_options(runs)
    _print(rows + options, as_csv, range(len(rows[0])))
    if not options and not as_csv:
        print("All options are the same.")


def _print(rows, as_csv: bool, left: Sequence[int]) -> None:
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    else:
        print(formatting.align_table(rows, left=left))
