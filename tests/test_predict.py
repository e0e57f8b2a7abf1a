"""The command `efficientnetv2 predict`."""

import csv
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from efficientnetv2.serving import formats, inspection, loading
from tests.conftest import encode, raises, run_program

pytestmark = pytest.mark.slow


def _run(*arguments, cwd):
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    return run_program(
        "predict", *arguments, module="efficientnetv2", cwd=cwd, env=env
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
        "pictures", "broken.jpg", "*.webp", f"--model={folder_run}",
        cwd=pictures,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "skipped broken.jpg: " in result.stderr
    assert "skipped *.webp: no file matches" in result.stderr
    assert "2 of 4 could not be read" in result.stderr
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
        (["{photo}"], ["Set --model"]),
        (["--model={run}"], ["No image"]),
        (["--model={run}", "{photo}", "--json", "--csv"], ["be combined"]),
        (["--model={run}", "{photo}", "--top=0"], ["top"]),
        (
            ["--model={run}", "thre.png"],
            ["skipped thre.png: there is no such file"],
        ),
        (["--model=efficientnetv2-z", "{photo}"], ["efficientnetv2-"]),
        (["--model={run}", "--weights=imagenet", "{photo}"], ["--weights"]),
    ],
)
def test_mistakes_are_reported_without_tensorflow(
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
@cli.command()
def prints(given, words):
    "Prints."
    for number in range(100000):
        print(number)
cli.start(prints, "prints")
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
    file = tmp_path / "model.keras"
    with raises(formats.ModelError, "no such folder"):
        formats.find_model(file)
    file.write_bytes(b"")
    (tmp_path / "model.txt").write_text("")
    for model, kind in (
        (folder_run, "run"),
        (folder_run / "saved_model", "saved_model"),
        ("efficientnetv2-s", "published"),
        (file, "keras"),
    ):
        assert formats.find_model(model).kind == kind
    for model, words in (
        (tmp_path, "saved_model.pb"),
        (tmp_path / "model.txt", "is not a model"),
    ):
        with raises(formats.ModelError, words):
            formats.find_model(model)
    with raises(formats.ModelError, "--checkpoint"):
        formats.find_model(file, checkpoint="last")


def test_where_images_are_looked_for(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    (pictures / "empty").mkdir()
    both = ["pictures/below/seven.PNG", "pictures/three.png"]
    for names, found in (
        (["pictures"], both),
        (["pictures/*.png", "pictures"], both[::-1]),
        (["pictures/note.txt"], ["pictures/note.txt"]),
    ):
        assert formats.find_images(names, pytest.fail) == found
    for name, words in (
        ("pictures/thre.png", "Did you mean pictures/three.png"),
        ("*.webp", "no file matches"),
        ("nowhere/a.png", "no folder nowhere"),
        ("empty", "no images in this folder"),
    ):
        skipped = {}
        names = ["broken.jpg", name, "pictures"]
        found = formats.find_images(names, skipped.__setitem__)
        assert found == ["broken.jpg", *both]
        assert list(skipped) == [name] and words in skipped[name]


def test_files_that_predictions_leave(folder_run, pictures):
    result = _run(
        "pictures", f"--model={folder_run}", "--threshold=0.5", "--tta=all",
        "--features=features.npz", "--sort_to=sorted",
        "--annotate_to=annotated", "--grad_cam_to=cam", cwd=pictures,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    with np.load(pictures / "features.npz") as file:
        paths = ["pictures/below/seven.PNG", "pictures/three.png"]
        assert list(file["files"]) == paths
        assert file["features"].shape == (2, 32)
        assert file["features"].dtype == np.float32
    for each in re.split(r"\n(?=\S)", result.stdout.strip()):
        path, *classes = each.splitlines()
        name = classes[0].partition("%  ")[2] or "unsure"
        copy = pictures / "sorted" / name / pathlib.Path(path).name
        assert copy.read_bytes() == (pictures / path).read_bytes()
    for folder in ("annotated", "cam"):
        assert {path.name for path in (pictures / folder).iterdir()} == {
            "seven.png",
            "three.png",
        }
    picture = Image.open(pictures / "annotated/three.png")
    assert picture.width == 448 and picture.height > picture.width
    options = ("--threshold=1", "--sort_to=sorted2")
    _run("pictures", f"--model={folder_run}", *options, cwd=pictures)
    assert len(list((pictures / "sorted2/unsure").iterdir())) == 2
    model = f"--model={folder_run / 'saved_model'}"
    result = _run("pictures", model, "--features=x.npz", cwd=pictures)
    assert result.returncode == 2 and "name the folder" in result.stderr


def test_the_views_of_an_image():
    pixels = np.zeros([16, 24, 3], np.uint8)
    pixels[0, 0], pixels[-1, -1] = 10, 200
    data = encode(Image.fromarray(pixels), "PNG")

    def views(kind):
        found = loading.views_of(data, kind)
        return [np.asarray(Image.open(BytesIO(view))) for view in found]

    itself, mirrored = views("flip")
    np.testing.assert_array_equal(itself, pixels)
    np.testing.assert_array_equal(mirrored, pixels[:, ::-1])
    crops = views("crop")
    assert [each.shape for each in crops[1:]] == [(14, 21, 3)] * 5
    assert crops[1][0, 0, 0] == 10 and crops[4][-1, -1, 0] == 200
    assert crops[1].max() == 10 and crops[5].max() == 0
    assert len(views("all")) == 12
    classify = loading.averaging(
        lambda images: np.array([[len(each), 1.0] for each in images]), "flip"
    )
    expected = np.mean([len(view) for view in loading.views_of(data, "flip")])
    np.testing.assert_allclose(classify([data] * 2), [[expected, 1.0]] * 2)


@pytest.mark.parametrize(
    ("method", "part", "size"),
    [("grad_cam", "", 24), ("occlusion", "saved_model", 28)],
)
def test_attention_is_where_the_evidence_is(
    folder_run, source, method, part, size
):
    """The class of an image is where its bright columns are."""
    classifier = loading.load_classifier(folder_run / part)
    columns = []
    for label in (1, 8):
        image = np.repeat(source.images[label], 3, axis=-1)
        heat = getattr(inspection, method)(classifier, image, label)
        assert heat.shape == (size, size)
        assert heat.max() == pytest.approx(1.0)
        columns.append(heat.mean(axis=0) @ np.arange(size) / heat.mean(0).sum())
    assert columns[0] < columns[1]
