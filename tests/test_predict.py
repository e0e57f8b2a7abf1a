"""The command `python -m efficientnetv2.predict`."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from efficientnetv2.errors import DataError
from efficientnetv2.serving import locate


def _run(*arguments, cwd):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return subprocess.run(
        [sys.executable, "-m", "efficientnetv2.predict", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        timeout=300,
    )


@pytest.fixture
def pictures(folder_run, tmp_path):
    """A folder with two images, one in a sub-folder, and a broken one."""
    for source, place in (
        ("class 3/003.png", "pictures/three.png"),
        ("class 7/007.png", "pictures/below/seven.PNG"),
    ):
        target = tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder_run.parent / "photos/val" / source, target)
    (tmp_path / "pictures/note.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return tmp_path


def test_text_and_the_exit_status(folder_run, pictures):
    result = _run(
        "pictures", "broken.jpg", f"--model={folder_run}", cwd=pictures
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "skipped broken.jpg: " in result.stderr
    assert "1 of 3 images" in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 12
    assert lines[0] == "pictures/below/seven.PNG"
    assert lines[1].endswith("%  class 7")
    assert lines[6] == "pictures/three.png"
    assert lines[7].endswith("%  class 3")


def test_json_and_csv(folder_run, pictures):
    arguments = (f"--model={folder_run / 'saved_model'}", "pictures", "--top=2")
    result = _run(*arguments, "--json", cwd=pictures)
    assert result.returncode == 0 and not result.stderr, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["file"] for row in rows] == [
        "pictures/below/seven.PNG",
        "pictures/three.png",
    ]
    best, second = rows[0]["predictions"]
    assert best["name"] == "class 7" and best["label"] == 7
    assert best["probability"] > second["probability"]
    result = _run(*arguments, "--csv", "--batch_size=1", cwd=pictures)
    table = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["rank"] for row in table] == ["1", "2", "1", "2"]
    assert float(table[0]["probability"]) == pytest.approx(
        best["probability"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{photo}"], ["--model is missing"]),
        (["--model={run}"], ["No image"]),
        (["--model={run}", "{photo}", "--json", "--csv"], ["exclude"]),
        (["--model={run}", "{photo}", "--top=0"], ["top"]),
        (["--model={run}", "thre.png"], ["no file thre.png"]),
        (["--model=efficientnetv2-z", "{photo}"], ["efficientnetv2-"]),
        (["--model={run}", "--weights=imagenet", "{photo}"], ["--weights"]),
    ],
)
def test_mistakes_are_told_without_tensorflow(
    folder_run, pictures, arguments, words
):
    (pictures / "tensorflow.py").write_text("raise SystemExit('imported')")
    arguments = [
        each.format(photo="pictures/three.png", run=folder_run)
        for each in arguments
    ]
    result = _run(*arguments, cwd=pictures)
    assert result.returncode in (1, 2) and not result.stdout
    assert "Traceback" not in result.stderr and "imported" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_reader_that_ends_early(arguments):
    """As `| head` does."""
    program = """
from efficientnetv2 import cli
def run(words):
    for number in range(100000):
        print(number)
cli.start(cli.command(run, positional=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_where_models_are_looked_for(folder_run, tmp_path):
    assert locate.find_model(folder_run).kind == "run"
    assert locate.find_model(folder_run / "saved_model").kind == "saved_model"
    assert locate.find_model("efficientnetv2-s").kind == "published"
    file = tmp_path / "model.keras"
    with pytest.raises(locate.ModelError, match="no such folder"):
        locate.find_model(file)
    file.write_bytes(b"")
    assert locate.find_model(file).kind == "keras"
    with pytest.raises(locate.ModelError, match="saved_model.pb"):
        locate.find_model(tmp_path)
    (tmp_path / "model.txt").write_text("")
    with pytest.raises(locate.ModelError, match="is no model"):
        locate.find_model(tmp_path / "model.txt")
    with pytest.raises(locate.ModelError, match="--checkpoint"):
        locate.find_model(file, checkpoint="last")


def test_where_images_are_looked_for(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    both = ["pictures/below/seven.PNG", "pictures/three.png"]
    assert locate.find_images(["pictures"]) == both
    assert locate.find_images(["pictures/*.png", "pictures"]) == both[::-1]
    assert locate.find_images(["pictures/note.txt"]) == ["pictures/note.txt"]
    for name, words in (
        ("pictures/thre.png", "Did you mean pictures/three.png"),
        ("*.webp", "No file matches"),
        ("nowhere/a.png", "no folder nowhere"),
    ):
        with pytest.raises(DataError, match=words.replace("*", r"\*")):
            locate.find_images(["broken.jpg", name])
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match="no images in the folder empty"):
        locate.find_images(["empty"])
