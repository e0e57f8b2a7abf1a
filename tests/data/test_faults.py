"""What is found wrong with data before training, and by `data check`."""

import os
import re
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnetv2 import config as config_lib
from efficientnetv2.data import faults, loading, registry, sources
from efficientnetv2.errors import DataError
from tests.conftest import TINY, encode, raises, run_program
from tests.data.test_decoding import PIXELS, _transparent


def _folder(root):
    data = encode(Image.fromarray(PIXELS))
    for part, count in (("train", 8), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                (root / part / name / f"{part}{k}.jpg").write_bytes(data)
    return root


def _look(root, overrides=""):
    registry.forget()
    config = config_lib.load(
        str(root), hparam_str=f"{TINY},train.batch_size=4{overrides}"
    )
    lines = []
    splits = {
        split: loading.load_split(config, split, lambda _: None)
        for split in ("train", "minival", "eval")
    }
    faults.before_training(config, splits, lines.append)
    return lines


def test_other_files_are_named_before_training(tmp_path):
    root = _folder(tmp_path / "photos")
    folder = root / "train" / "cat"
    # What another suffix has is read all the same.
    (folder / "webp.jpg").write_bytes(encode(_transparent(), "WEBP"))
    (folder / "png.webp").write_bytes(encode(_transparent(), "PNG"))
    assert _look(root) == []
    webp = encode(_transparent(), "WEBP", lossless=True)
    cases = {
        "a.png": (b"", "it is empty"),
        "b.jpg": (b"<!DOCTYPE html><title>Not found", "an HTML page"),
        "c.jpg": (encode(Image.fromarray(PIXELS), "TIFF"), "a TIFF"),
        "d.webp": (webp[:-30], "truncated"),
        "e.png": (b"version https://git-lfs.github.com", "Git LFS"),
        "f.jpg": (b"\0\0\0\x18ftypheic\0\0", "a HEIC"),
        "g.jpg": (bytes(500), "nothing but zeros"),
        "h.jpg": (b"Too many requests\n", "text"),
    }
    for name, (data, reason) in cases.items():
        (folder / name).write_bytes(data)
        found = f"{folder / name} (class 'cat'): it is"
        with raises(DataError, found, reason, "data check"):
            _look(root)
        (folder / name).unlink()
    for name, (data, _) in cases.items():
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match="8 of 34 files .*(?s:.)*and 3 more"):
        _look(root)


def test_messages_before_training(tmp_path):
    root = _folder(tmp_path / "photos")
    large = Image.fromarray(PIXELS).resize((224, 160))
    for path in root.rglob("*.jpg"):
        path.write_bytes(encode(large))
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16))
    (root / "train" / "cat" / "deep.png").write_bytes(encode(deep, "PNG"))
    lines = _look(root)
    assert len(lines) == 1 and "1 of 25 images are 16-bit PNGs" in lines[0]
    lines = _look(root, ",data.antialias=false")
    assert len(lines) == 2 and "shrunk by 6.7 " in lines[1]
    assert len(_look(root, ",data.antialias=false,eval.isize=80")) == 1
    twice = root / "val" / "cat" / "train0.jpg"
    shutil.copy(root / "train" / "cat" / "train0.jpg", twice)
    said = f"1 images of validation or test are .* such as {twice}"
    assert re.match(said, _look(root)[-1])


def test_a_bad_test_image_stops_training_before_it_begins(tmp_path):
    from efficientnetv2 import api

    root = _folder(tmp_path / "photos")
    config = config_lib.load(
        str(root), hparam_str=f"{TINY},train.batch_size=4,train.epochs=1"
    )
    split = loading.load_split(config, "eval", lambda _: None)
    with open(split.items[0], "wb") as file:
        file.write(b"<html>")
    lines = []
    with pytest.raises(DataError, match="1 of 24 files cannot be read"):
        api.execute(config, tmp_path / "run", log=lines.append)
    assert not any("parameters" in line for line in lines)


def _check(root):
    lines = []
    registry.forget()
    info = registry.load_info(str(root))
    wrong = faults.check_dataset(
        info,
        lambda split: loading.load_from(info, split, root, lambda _: None),
        lines.append,
    )
    return wrong, lines


def test_everything_is_decoded(tmp_path):
    root = _folder(tmp_path / "photos")
    assert _check(root) == (
        0,
        ["24 images in train, minival, eval: all can be read."],
    )
    cut = root / "train" / "cat" / "train3.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    empty = root / "test" / "dog" / "test1.jpg"
    empty.write_bytes(b"")
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16))
    (root / "train" / "cat" / "deep.png").write_bytes(encode(deep, "PNG"))
    wrong, lines = _check(root)
    text = "\n".join(lines)
    assert wrong == 2 and "2 faults" in lines[-1]
    assert f"{cut} (class 'cat') cannot be read: jpeg::Uncompress" in text
    assert f"{empty} (class 'dog') cannot be read: it is empty" in text
    assert "deep.png (class 'cat') is nearly black" in text
    registry.forget()


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ("JPEG", "Invalid JPEG data"),
        ("PNG", "Invalid PNG data"),
        ("GIF", "Invalid GIF data"),
        ("WEBP", "Failed to decode WebP"),
        ("BMP", "truncated"),
    ],
)
def test_reasons_are_those_of_the_decoder(form, word):
    data = encode(Image.fromarray(PIXELS), form)
    assert faults.fault_of_image(tf.constant(data)) is None
    reason = faults.fault_of_image(tf.constant(data[:90]))
    assert word in reason and "\n" not in reason and "[[" not in reason


@pytest.mark.slow
def test_the_command_ends_with_the_verdict(tmp_path):
    root = _folder(tmp_path / "photos")
    bad = root / "test" / "dog" / "test1.jpg"
    bad.write_bytes(b"no image")
    done = run_program(
        "check", f"--dataset={root}", module="efficientnetv2.data"
    )
    assert done.returncode == 1 and str(bad) in done.stdout
    assert "Traceback" not in done.stderr


def test_shards_are_looked_at(tmp_path, source):
    from tests.data.test_formats import _records_yaml, _write_shards

    _write_shards(tmp_path, source)
    info = registry.load_info(_records_yaml(tmp_path / "mine.yaml"))
    split = loading.open_shards(info, info.splits["train"], tmp_path)
    assert all(reason is None for *_, reason in faults._beginnings(split))
    path = tmp_path / "train-00002-of-00004"
    path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "train-00003-of-00004").write_bytes(b"<html>not found</html>")
    reasons = [reason for *_, reason in faults._beginnings(split)]
    assert reasons[:2] == [None, None]
    assert all("truncated" in reason for reason in reasons[2:])
    lines = []
    wrong = faults.check_dataset(
        info,
        lambda split: loading.open_shards(info, info.splits[split], tmp_path),
        lines.append,
    )
    # Two shards and the sum, in each of three splits.
    assert wrong == 9, lines


def test_many_files_take_little_time(tmp_path):
    data = encode(Image.fromarray(PIXELS))
    names = []
    for k in range(4_000):
        names.append(str(tmp_path / f"{k}.jpg"))
        with open(names[-1], "wb") as file:
            file.write(data)
    split = sources.EncodedSource(
        names, True, np.zeros(len(names), np.int64), ["cat"]
    )
    start = time.process_time()
    assert not any(reason for *_, reason in faults._beginnings(split))
    # 100,000 in ten seconds.
    assert time.process_time() - start < 0.4
    os.unlink(names[0])
    assert sum(bool(reason) for *_, reason in faults._beginnings(split)) == 1
