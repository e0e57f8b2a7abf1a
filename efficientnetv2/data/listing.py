"""Images that are listed by file: folders, and lists in CSV.

Here is what both share: which names stand for which split, and how images are
divided where their splits are not given.
"""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from efficientnetv2.errors import DataError

_ALIASES = {
    "train": "train training trn",
    "minival": "minival validation valid val validate validating dev devel "
    "development",
    "eval": "eval evaluation evaluate evaluating test testing tst holdout "
    "heldout",
}
_SPLIT_OF = {
    alias: split
    for split, aliases in _ALIASES.items()
    for alias in aliases.split()
}
# What surrounds such a name: train_set, val2017, test-images.
_DECORATION = re.compile(r"set|sets|split|data|images?|imgs?|photos|files")
# Shares of the unit interval, into which the hash of a name falls.
_HELD_OUT = {"eval": (0.0, 0.1), "minival": (0.1, 0.2)}
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class ListedSplit:
    """The images of a split, in three lists of one length.

    Attributes:
        files: paths.
        labels: numbers of classes; lists of them where an image may have
            several.
        names: of the files, relative to the folder: 'cat/1.jpg'. The same on
            every machine.
    """

    files: list[str]
    labels: list
    names: list[str]

    def __len__(self) -> int:
        return len(self.files)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a dataset.

    Attributes:
        class_names: of the class folders, in the order of the labels.
        splits: by name.
        notes: what the user may not expect, a line each.
        multi_label: whether an image may have several classes.
    """

    class_names: list[str]
    splits: Mapping[str, ListedSplit]
    notes: list[str]
    multi_label: bool = False

    def counts(self, split: str) -> dict[str, int]:
        """Returns the number of images of each class in a split."""
        counts = [0] * len(self.class_names)
        for label in self.splits[split].labels:
            for each in label if self.multi_label else (label,):
                counts[each] += 1
        return dict(zip(self.class_names, counts, strict=True))


def normal_form(name: str) -> str:
    """Returns a name as NFC, in which systems agree on accents."""
    return unicodedata.normalize("NFC", name)


def split_of(name: str) -> str | None:
    """Returns the split that a folder's name stands for, None for none.

    'Train', 'train_set', 'val2017', 'hold-out' and the like are such names.
    """
    words = re.findall(r"[a-z]+", normal_form(name).casefold())
    kept = [word for word in words if not _DECORATION.fullmatch(word)]
    joined = "".join(kept)
    if joined not in _SPLIT_OF:
        joined = re.sub(f"({_DECORATION.pattern})$", "", joined)
    return _SPLIT_OF.get(joined)


def some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    text = ", ".join(names[:_SHOWN])
    return f"{text} and {more:,} more" if more > 0 else text


def share(name: str) -> float:
    """Returns a number in [0, 1) that depends on a name alone, by its hash."""
    digest = hashlib.sha256(normal_form(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def divide(
    entries: dict[str, list[tuple]], root: str, class_names: Sequence[str]
) -> dict[str, ListedSplit]:
    """Returns all splits, those that lack taken from 'train' by name.

    In which split an image falls depends on its name alone, so that images
    may be added without moving any.

    Args:
        entries: (label, name, path) of the images of 'train' and perhaps
            'minival' and 'eval', sorted.
        root: for errors.
        class_names: likewise.

    Raises:
        DataError: if a split has no images, or a class none for training.
    """
    if entries.keys() == {"train", "minival"}:
        # What is called validation is what people report.
        entries["eval"] = entries.pop("minival")
    lacking = [split for split in _HELD_OUT if split not in entries]
    parts = {split: [] for split in ("train", *lacking)}
    for entry in entries["train"]:
        place = share(entry[1])
        split = next(
            (
                split
                for split in lacking
                if _HELD_OUT[split][0] <= place < _HELD_OUT[split][1]
            ),
            "train",
        )
        parts[split].append(entry)
    total = len(entries["train"])
    entries |= parts
    remedy = (
        "Add images, or divide them yourself: train/CLASS, val/CLASS and "
        "test/CLASS."
    )
    for split, part in entries.items():
        if part:
            continue
        raise DataError(
            f"The split {split!r} of {root} has no images: a tenth of "
            f"{total:,} is chosen by a hash of each name, by which none was. "
            f"{remedy}"
        )
    trained = {
        each
        for label, *_ in entries["train"]
        for each in (label if isinstance(label, tuple) else (label,))
    }
    without = [n for k, n in enumerate(class_names) if k not in trained]
    if without:
        raise DataError(
            f"{root}: no image of {some(list(map(repr, without)))} is left "
            f"for training: what has few images may fall into other splits by "
            f"the hash of their names. {remedy}"
        )
    entries["trainval"] = sorted(entries["train"] + entries["minival"])
    return {
        split: ListedSplit(
            [path for *_, path in part],
            [
                list(label) if isinstance(label, tuple) else label
                for label, *_ in part
            ],
            [name for _, name, _ in part],
        )
        for split, part in entries.items()
    }


def notes_on_classes(
    splits: Mapping[str, ListedSplit],
    class_names: Sequence[str],
    root: str,
) -> list[str]:
    """Returns a line for each split that lacks classes."""
    notes = []
    for split in ("minival", "eval"):
        found = set()
        for label in splits[split].labels:
            found.update(label if isinstance(label, list) else (label,))
        missing = [n for k, n in enumerate(class_names) if k not in found]
        if missing:
            notes.append(
                f"The split {split!r} of {root} ({len(splits[split]):,} "
                f"images) has no image of {some(list(map(repr, missing)))}: "
                f"{len(missing):,} of {len(class_names):,} classes."
            )
    return notes
