"""Folders and lists of images, as people really have them.

Only names are looked at: the files are empty.
"""

import os
import pathlib

import pytest

from efficientnetv2 import config as config_lib
from efficientnetv2.data import fingerprint, registry
from efficientnetv2.errors import DataError, UserError
from tests.conftest import TINY, raises

LITTER = (
    *("Thumbs.db", "__MACOSX/cat/._1.jpg", "cat/.DS_Store"),
    ".ipynb_checkpoints/cat/1.jpg",
)
ROWS = [(f"img/{k}.jpg", ("cat", "dog")[k % 2]) for k in range(60)]


def _touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    registry.forget()
    return root


def _classes(root, *names, count=30):
    return _touch(root, *(f"{n}/{k}.jpg" for n in names for k in range(count)))


def _sizes(index):
    return {name: len(part) for name, part in index.splits.items()}


def _two(root):
    return _classes(root, "cat", "dog")


def test_class_folders_are_split_by_name(tmp_path):
    names = [f"{c}/{k}.JPG" for c in ("b", "a") for k in range(25)]
    root = _touch(tmp_path, *names, "a/.hidden.jpg", "a/notes.txt")
    index = registry.list_images(root)
    assert index.class_names == ["a", "b"]
    assert _sizes(index) == {
        **{"train": 44, "minival": 2},
        **{"eval": 4, "trainval": 46},
    }
    everything = index.splits["trainval"].files + index.splits["eval"].files
    assert len(set(everything)) == 50
    assert not {*index.splits["train"].files} & {*index.splits["minival"].files}
    for part in index.splits.values():
        for file, label in zip(part.files, part.labels, strict=True):
            assert f"/{index.class_names[label]}/" in file
    registry.forget()
    assert registry.list_images(root) == index


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "val", "test"),
        ("Training", "VALID", "test_set"),
        ("images_train", "images_dev", "hold-out"),
        ("Train Images", "Validation Images", "Test Images"),
        ("train2017", "val2017", None),
    ],
)
def test_folders_of_splits(tmp_path, train, val, test):
    for name, count in ((train, 10), (val, 3), (test, 2)):
        if name:
            _classes(tmp_path / name, "a", "b", count=count)
    index = registry.list_images(tmp_path)
    of_val = index.splits["minival" if test else "eval"]
    assert len(of_val) == 6 and all(f"/{val}/" in f for f in of_val.files)
    assert index.class_names == ["a", "b"]
    assert len(index.splits["trainval"]) == (26 if test else 20)


def _nested(root):
    _touch(_two(root / "train"), "cat/sub/deep/1.jpg")


def _links(root):
    os.symlink("/nowhere/1.jpg", _two(root) / "cat" / "link.jpg")
    os.symlink("/nowhere/birds", root / "bird")


@pytest.mark.parametrize(
    ("make", "notes"),
    [
        (_two, []),
        (
            lambda root: _touch(_two(root), "cat/a.tif", "dog/b.HEIC", "c.png"),
            ["3 files left out: 1 images outside", "1 .heic", "cat/a.tif"],
        ),
        (lambda root: _touch(_two(root), *LITTER), []),
        # A class whose name begins with a dot is not dropped in silence.
        (lambda root: _classes(root, "cat", "dog", ".net"), ["such as .net/"]),
        (_links, ["cat/link.jpg (broken link)", "bird (broken link)"]),
        (_nested, ["1 images lie in sub-folders", "beside train/"]),
    ],
)
def test_what_is_left_out_is_reported(tmp_path, make, notes):
    make(tmp_path)
    index = registry.list_images(tmp_path)
    assert index.class_names == ["cat", "dog"]
    said = [note for note in index.notes if "has no image of" not in note]
    assert bool(said) == bool(notes)
    for words in notes:
        assert words in "\n".join(said)


def test_odd_names_of_classes(tmp_path):
    names = ["#1", "-x", "100%", "a:b", "a|b", "cats, dogs", "it's", "ünïcode"]
    index = registry.list_images(_classes(tmp_path, *names))
    assert index.class_names == names
    (tmp_path / "class_names.txt").write_bytes(
        "\r\n".join(["\ufeffünïcode", *names[:-1], ""]).encode()
    )
    registry.forget()
    assert registry.list_images(tmp_path).class_names == [
        "ünïcode",
        *names[:-1],
    ]


def _wrong_names(names):
    return lambda root: (
        _touch(_two(root)) and (root / "class_names.txt").write_text(names)
    )


def _one_folder_twice(root):
    os.symlink(_two(root) / "cat", root / "kitten")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ([], ["no sub-folders"]),
        (["1.png"], ["no sub-folders"]),
        (["a/1.png", "b/readme.txt"], ["b", "has no images", "but .txt"]),
        (["Cat/1.png", "cat/1.png", "dog/1.png"], ["'Cat'", "'cat'"]),
        (["cat/1.png", "cat /1.png", "dog/1.png"], ["'cat'", "'cat '"]),
        (["caf\u00e9/1.png", "cafe\u0301/1.png"], ["accents"]),
        (_one_folder_twice, ["'cat' and 'kitten' are the same folder"]),
        (["a/1.png"], ["one class only", "'a'"]),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], ["'c'", "val"]),
        (["a/1.png", "b/1.png"], ["'eval'", "no images"]),
        (["a\nb/1.png", "c/1.png"], ["control character"]),
        (["a/\udcff.jpg", "b/1.jpg"], ["not valid UTF-8"]),
        (["x_train/a/1.png", "x_test/a/1.png"], ["'x_test' is a split"]),
        (["cat/train/1.png", "dog/train/1.png"], ["folders of images: train"]),
        (["train/a/1.png", "test/1.png"], ["looks like a split, but holds"]),
        (["test/a/1.png", "test/b/1.png"], ["no train/"]),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], ["both look like"]),
        (["photos/a/1.png", "photos/b/1.png"], ["--dataset="]),
        (_wrong_names("cat\n"), ["class_names.txt must", "'dog'"]),
        (_wrong_names("cat\ncat\n"), ["class_names.txt must", "'dog'"]),
        (_wrong_names("cat\ndogs\n"), ["class_names.txt must", "'dog'"]),
    ],
)
def test_refused_folders(tmp_path, make, words):
    make(tmp_path) if callable(make) else _touch(tmp_path, *make)
    with raises(DataError, *words, tmp_path):
        registry.list_images(tmp_path)


# --- CSV files --------------------------------------------------------------


def _table(header="file,label", rows=ROWS, separator=",", end="\n"):
    rows = [header, *(separator.join(row) for row in rows)]
    return "".join(row + end for row in rows)


def _labels(label):
    return [
        (file, label if k % 3 else own) for k, (file, own) in enumerate(ROWS)
    ]


@pytest.fixture
def listed(tmp_path):
    """Returns a function from the text of a list beside images to it."""
    _touch(tmp_path, *(file for file, _ in ROWS), "img/a, b.jpg", "other.txt")

    def load(text, name="list.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        registry.forget()
        info = registry.load_info(str(path))
        return info, registry.list_images(path)

    return load


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (_table(), "list.csv"),
        (_table(), "LIST.CSV"),
        (_table("file;label", separator=";"), "list.csv"),
        (_table("file\tlabel", separator="\t"), "list.tsv"),
        ("\ufeff" + _table(end="\r\n"), "list.csv"),
        (_table(end="\r") + "\r,\r", "list.csv"),
        (_table(rows=[(f"./{f}", f" {n} ") for f, n in ROWS]), "list.csv"),
        (_table(rows=[(f.replace("/", "\\"), n) for f, n in ROWS]), "list.csv"),
        (_table("id,Image Path,Class", [("7", *r) for r in ROWS]), "list.csv"),
    ],
)
def test_lists_of_every_make(listed, text, name):
    info, index = listed(text, name)
    assert info.source == "csv" and info.num_classes == 2
    assert not info.multi_label
    assert index.class_names == ["cat", "dog"] and not index.notes
    assert _sizes(index) == {
        **{"train": 52, "minival": 3},
        **{"eval": 5, "trainval": 55},
    }


def test_absolute_paths_quotes_and_splits(listed, tmp_path):
    rows = [(str(tmp_path / f), n) for f, n in ROWS]
    assert listed(_table(rows=rows))[1] == listed(_table(), "other.csv")[1]
    _, index = listed(_table(rows=[*ROWS, ('"img/a, b.jpg"', '"c, d"')]))
    assert index.class_names == ["c, d", "cat", "dog"]
    rows = [(*r, ("Train", "VALID", "test")[k % 3]) for k, r in enumerate(ROWS)]
    _, index = listed(_table("file,label,split", rows))
    assert set(_sizes(index).values()) == {20, 40}
    _, index = listed(
        _table(rows=[(f, str(k % 12)) for k, (f, _) in enumerate(ROWS)])
    )
    assert index.class_names == [str(k) for k in range(12)]
    info, index = listed(_table("file,labels", _labels("cat|dog")))
    assert info.multi_label and (0, 1) in index.splits["train"].labels
    _, index = listed(_table("file,labels"))
    assert "no image has several labels" in index.notes[0]
    _, index = listed(_table(rows=[*ROWS[:-1], (ROWS[-1][0], "Dog")]))
    assert "'Dog' and 'dog'" in index.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a header"),
        (_table("img/1.jpg,cat"), "needs a header"),
        (_table("file,cat,dog"), "needs a header"),
        (_table("file,class,label"), "two columns for 'label'"),
        ("file,label\n", "no images for training"),
        (
            _table(rows=[*ROWS, ("img/7.jpg", "dog")]),
            "row 62: .* also in row 9",
        ),
        (
            _table(rows=[*ROWS, ("img/x.jpg", "dog")]),
            "1 of 61 files are missing",
        ),
        (_table(rows=[*ROWS, ("img", "dog")]), "1 of 61 files are missing"),
        (_table(rows=[*ROWS, ("other.txt",)]), "row 62: 1 cells"),
        (_table(rows=[*ROWS, ("other.txt", "")]), "row 62: '' is not a label"),
        (_table(rows=[*ROWS, ("", "cat")]), "row 62: no file"),
        (_table(rows=_labels("cat|dog")), "several labels. Call the column"),
        (_table("file,labels", _labels("cat;dog")), "joined by '|'"),
        (_table("file,labels", _labels("cat dog")), "joined by '|'"),
        (_table(rows=ROWS[::2]), "one class only: 'cat'"),
        (_table("file,label,split", [(*r, "1") for r in ROWS]), "not a split"),
        ('file,label\n"img/1.jpg,cat\n', "Cannot read"),
        (_table().encode("utf-16"), "in UTF-8"),
    ],
)
def test_refused_lists(listed, text, words):
    with pytest.raises(DataError, match=words):
        listed(text)


# --- The data of a run ------------------------------------------------------


def _remove(root):
    (root / "cat" / "5.jpg").unlink()
    return "removed from '.*cat/5.jpg"


def _add(root):
    _touch(root, "dog/new.jpg")
    return "1 file added to 'train', such as dog/new.jpg"


def _grow(root):
    (root / "cat" / "5.jpg").write_bytes(b"more")
    return "1 file of another size, such as cat/5.jpg"


def _move(root):
    (root / "cat" / "only.jpg").rename(root / "dog" / "only.jpg")
    return "1 file moved from the class 'cat' to 'dog', such as cat/only.jpg"


def _rename(root):
    (root / "cat").rename(root / "tiger")
    return "(?s)other class names .*0 'cat'.*1 'tiger'"


@pytest.mark.parametrize("list_is_there", [True, False])
@pytest.mark.parametrize("change", [_remove, _add, _grow, _move, _rename])
def test_other_data_are_refused_and_reported(tmp_path, change, list_is_there):
    root = _touch(_two(tmp_path / "photos"), "cat/only.jpg")
    run = tmp_path / "run"
    run.mkdir()

    def claim(begun, options=""):
        registry.forget()
        arguments = {"recipe": "fashion_mnist", "hparam_str": TINY + options}
        config = config_lib.load(str(root), **arguments)
        return fingerprint.claim(config, run, lines.append, begun)

    lines = []
    for name, content in claim(begun=False).items():
        (run / name).write_text(content)
    claim(begun=True)
    # The same data elsewhere are the same.
    root = root.rename(tmp_path / "moved")
    claim(begun=True)
    assert not lines
    words = change(root)
    if not list_is_there:
        (run / fingerprint.FILES).unlink()
        words = words if change is _rename else "images then, .* now"
    with pytest.raises(UserError, match=words):
        claim(begun=True)
    if change is not _rename:
        claim(begun=True, options=",data.allow_changes=true")
        assert "Continuing" in lines[0]


def test_an_edited_file_of_a_run_is_named(tmp_path):
    pathlib.Path(tmp_path, "class_names.txt").write_text("cat\ndog\n")
    assert fingerprint.class_names(tmp_path) == ["cat", "dog"]
    (tmp_path / fingerprint.FILE).write_text("{}")
    with pytest.raises(fingerprint.ChangedDataError, match="damaged"):
        fingerprint.class_names(tmp_path)
    (tmp_path / fingerprint.FILE).write_text(
        '{"class_names": ["cat", "cow"], "splits": {"train": {"images": 3}}}'
    )
    with pytest.raises(fingerprint.ChangedDataError, match="was edited"):
        fingerprint.class_names(tmp_path)
