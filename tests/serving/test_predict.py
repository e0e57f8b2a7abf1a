"""Predictions from Python: every form of a model and of an image."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import yaml
from PIL import Image

from efficientnetv2 import api, cli, zoo
from efficientnetv2 import config as config_lib
from efficientnetv2.commands.run import by_mode
from efficientnetv2.data.sources import ArraySource
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.serving import formats, predict

pytestmark = pytest.mark.slow


FORMS = ("run", "keras", "saved_model")


@pytest.fixture(scope="module")
def forms(folder_run, tmp_path_factory):
    """The model of the run in three forms."""
    folder = tmp_path_factory.mktemp("forms") / "run"
    shutil.copytree(folder_run, folder)
    config = config_lib.load(hparam_str=str(folder / "config.yaml"))
    api.execute(config, folder, "export", log=lambda _: None, formats=["keras"])
    paths = (folder, folder / "model.keras", folder / "saved_model")
    return dict(zip(FORMS, paths, strict=True))


@pytest.fixture(scope="module")
def images(folder_run):
    folder = str(folder_run.parent / "photos/val")
    found = formats.find_images([folder], pytest.fail)
    assert len(found) == 200
    return found


@pytest.fixture(scope="module")
def measured(folder_run):
    return json.loads((folder_run / "metrics.json").read_text())["test"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_the_evaluation(forms, form, images, measured):
    found = predict.predict(forms[form], images, top=10, batch_size=64)
    right = [
        best.name in path
        for (best, *_), path in zip(found, images, strict=True)
    ]
    assert np.mean(right) == pytest.approx(measured["top1"])
    for predictions in found[:5]:
        values = [each.probability for each in predictions]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1.0, abs=1e-5)
        names = {each.label: each.name for each in predictions}
        assert names == {k: f"class {k}" for k in range(10)}


def _assert_alike(found, count):
    assert len(found) == count
    for predictions in found:
        for one, other in zip(predictions, found[0], strict=True):
            assert one.name == other.name
            assert one.probability == pytest.approx(other.probability, abs=1e-5)


@pytest.fixture
def upright(images):
    """An image that is gray, but not square."""
    with Image.open(images[0]) as opened:
        return opened.convert("RGB").resize((40, 28))


def test_images_of_pillow(forms, upright):
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    deep = np.asarray(upright.convert("L")).astype(np.uint16) << 8
    same = [
        np.asarray(upright),
        upright,
        turned,
        upright.convert("RGBA"),
        upright.convert("CMYK").convert("RGB"),
        Image.fromarray(deep),
        Image.fromarray(deep.astype(np.int32)),
    ]
    found = predict.predict(forms["run"], same)
    found += predict.predict(forms["run"], upright)
    _assert_alike(found, len(same) + 1)
    for wrong in (Image.new("F", (4, 4)), Image.fromarray(-deep.astype("i4"))):
        with pytest.raises(DataError, match="its pixels"):
            predict.predict(forms["run"], wrong)


@pytest.mark.parametrize("form", FORMS)
def test_files_that_exif_turns(forms, form, upright, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    for suffix in ("png", "webp"):
        upright.transpose(Image.Transpose.ROTATE_90).save(
            tmp_path / f"turned.{suffix}", exif=exif, lossless=True
        )
    paths = sorted(tmp_path.iterdir())
    _assert_alike(predict.predict(forms[form], paths), 3)


def test_forms_of_images(forms, images, tmp_path):
    """Files of any format and colour mode, bytes and arrays agree."""
    path = images[0]
    with Image.open(path) as image:
        gray = image.copy()
    same = [path, open(path, "rb").read(), np.asarray(gray.convert("RGB"))]
    files = {f"{mode}.png": mode for mode in ("RGB", "RGBA", "LA", "P")}
    files |= {f"image.{suffix}": "L" for suffix in ("bmp", "gif", "webp")}
    for name, mode in files.items():
        gray.convert(mode).save(tmp_path / name, lossless=True)
        same.append(tmp_path / name)
    found = predict.predict(forms["run"], same)
    _assert_alike(found, len(same))
    lossy = tmp_path / "image.jpg"
    gray.convert("CMYK").save(lossy, quality=95)
    pixel = np.zeros([1, 1, 3], np.uint8)
    assert len(predict.predict(forms["run"], [lossy, pixel])) == 2
    # A single image needs no list; a loaded model is not loaded again.
    classifier = predict.load_classifier(forms["run"])
    (best,) = predict.predict(classifier, path, top=1)[0]
    assert best.name == found[0][0].name


def test_images_that_cannot_be_read(forms, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(open(images[0], "rb").read()[:60])
    palette = tmp_path / "bad.bmp"
    palette.write_bytes(b"BM" + bytes(60))
    missing = tmp_path / "none.png"
    classifier = predict.load_classifier(forms["run"])
    for image, words in (
        (bad, "bad.png cannot"),
        (palette, "bad.bmp cannot"),
        (missing, "none.png cannot be read: No such file"),
        (b"", "Image 1 cannot be read: it is empty"),
    ):
        with pytest.raises(DataError, match=words):
            predict.predict(classifier, [images[0], image])
    with pytest.raises(UserError, match="float32 is not uint8"):
        predict.predict(classifier, np.zeros([4, 4, 3], np.float32))
    skipped = []
    found = predict.predict_stream(
        classifier,
        [images[0], bad, images[1], missing, palette],
        top=1,
        batch_size=2,
        on_error=lambda index, *_: skipped.append(index),
    )
    assert [image for image, _ in found] == images[:2]
    assert skipped == [1, 3, 4]


def test_a_run_whose_data_are_gone(forms, images, tmp_path):
    """What is needed of a run is its model, not the images it learned."""
    folder = tmp_path / "run"
    shutil.copytree(forms["run"] / "checkpoints", folder / "checkpoints")
    shutil.copy(forms["run"] / "class_names.txt", folder)
    saved = yaml.safe_load((forms["run"] / "config.yaml").read_text())
    saved["data"]["ds_name"] = str(tmp_path / "nowhere")
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    classifier = predict.load_classifier(folder, checkpoint="last")
    assert predict.predict(classifier, images[0])[0][0].name in images[0]


def test_published_weights_by_name(monkeypatch, tmp_path):
    """A name gives the model's own image size, ImageNet's classes."""
    asked = {}

    def build(name, weights):
        asked.update(name=name, weights=weights)
        inputs = keras.Input((None, None, 3))
        x = keras.layers.GlobalAveragePooling2D()(inputs)
        return keras.Model(inputs, keras.layers.Dense(1000)(x))

    monkeypatch.setattr(zoo, "build_model", build)
    classifier = predict.load_classifier("efficientnetv2-s")
    assert asked == {"name": "efficientnetv2-s", "weights": "imagenet"}
    image = np.zeros([50, 40, 3], np.uint8)
    (found,) = predict.predict(classifier, image, top=1000)
    words = {0: "tench", 282: "tiger cat", 517: "crane (machine)"}
    assert {e.label: e.name for e in found}.items() >= words.items()
    other = predict.load_classifier("efficientnet-b0", weights=str(tmp_path))
    assert asked["weights"] == str(tmp_path)
    assert (classifier.spec.image_size, classifier.spec.mode) == (384, "v2")
    assert (other.spec.image_size, other.spec.mode) == (224, "v1")


def test_the_float_policy_stays(forms):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        predict.load_classifier(forms["run"])
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_damaged_models(forms, tmp_path):
    saved, cut = tmp_path / "saved", tmp_path / "cut.keras"
    shutil.copytree(forms["saved_model"], saved)
    (saved / "saved_model.pb").write_bytes(b"no")
    data = forms["keras"].read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    for path, words in ((saved, "not a SavedModel"), (cut, "is truncated")):
        with pytest.raises(UserError, match=words):
            predict.load_classifier(path)
    (saved / "assets/class_names.txt").unlink()
    with pytest.raises(UserError, match="class_names.txt"):
        predict.load_classifier(saved)


def test_a_saved_model_scores_as_its_run(forms, source, measured):
    classifier = predict.load_classifier(forms["saved_model"])
    images = np.repeat(source.images, 3, axis=-1)
    split = ArraySource(images, source.labels, source.class_names)
    result = predict.evaluate_classifier(classifier, split, batch_size=64)
    assert result["images"] == 200
    for name in ("top1", "top5"):
        assert result[name] == pytest.approx(measured[name])
    # Another order of the classes, and only some of them.
    few = split.labels >= 5
    other = ArraySource(
        images[few], 9 - split.labels[few], source.class_names[:4:-1]
    )
    again = predict.evaluate_classifier(classifier, other)
    assert again["images"] == 100 and again["top1"] > 0.9
    unknown = dataclasses.replace(split, class_names=["zebra"] * 10)
    with pytest.raises(DataError, match="does not know the class 'zebra'"):
        predict.evaluate_classifier(classifier, unknown)


def test_weights_without_a_run(folder_run, measured, capfd):
    """The command, with a run's checkpoint as a user's own weights."""
    architecture = folder_run.parent / "tiny.yaml"
    saved = yaml.safe_load((folder_run / "config.yaml").read_text())
    content = {
        "model": {**saved["model"], "model_name": "tiny"},
        "eval": {"isize": 24},
        "data": {"augname": None, "eval_transformations": []},
    }
    architecture.write_text(yaml.safe_dump(content))
    weights = [f"--weights={folder_run}"]
    arguments = [f"--model_name={architecture}", *weights]
    arguments.append(f"--dataset={folder_run.parent / 'photos'}")
    for given, status, text in (
        (arguments, 0, f"top-1 {measured['top1']:.2%}"),
        ([*arguments, "--model_dir=there"], 2, "leave out --model_dir"),
        (weights, 2, "needs --model_name and --dataset"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.start(by_mode, "main", ["--mode=eval", *given])
        output = capfd.readouterr()
        assert ended.value.code == status, output.err
        assert text in (output.err if status else output.out)
        assert status or "(200 images, " in output.out
