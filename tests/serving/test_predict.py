"""Predictions from Python: every form of a model and of an image."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import yaml
from PIL import Image

from efficientnetv2 import zoo
from efficientnetv2.data.sources import ArraySource
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.serving import formats, predict
from efficientnetv2.serving.spec import ServingSpec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forms(folder_run, tmp_path_factory):
    """The model of the run in three forms."""
    from efficientnetv2 import api
    from efficientnetv2 import config as config_lib

    folder = tmp_path_factory.mktemp("forms") / "run"
    shutil.copytree(folder_run, folder)
    config = config_lib.load(hparam_str=str(folder / "config.yaml"))
    api.execute(config, folder, "export", log=lambda _: None, formats=["keras"])
    return {
        "run": folder,
        "keras": folder / "model.keras",
        "saved_model": folder / "saved_model",
    }


@pytest.fixture(scope="module")
def images(folder_run):
    folder = str(folder_run.parent / "photos/val")
    found = formats.find_images([folder], pytest.fail)
    assert len(found) == 200
    return found


@pytest.mark.parametrize("form", ["run", "keras", "saved_model"])
def test_every_form_agrees_with_the_evaluation(forms, form, images, folder_run):
    found = predict.predict(forms[form], images, top=10, batch_size=64)
    right = [
        best.name in path
        for (best, *_), path in zip(found, images, strict=True)
    ]
    metrics = json.loads((folder_run / "metrics.json").read_text())
    assert np.mean(right) == pytest.approx(metrics["test"]["top1"])
    for predictions in found[:5]:
        values = [each.probability for each in predictions]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1.0, abs=1e-5)
        assert {each.label for each in predictions} == set(range(10))
        for each in predictions:
            assert each.name == f"class {each.label}"


def _assert_alike(one, other):
    assert [each.name for each in one] == [each.name for each in other]
    np.testing.assert_allclose(
        [each.probability for each in one],
        [each.probability for each in other],
        atol=1e-5,
    )


def test_images_of_pillow(forms, images):
    with Image.open(images[0]) as opened:
        gray = opened.convert("L")
    upright = gray.convert("RGB").resize((40, 28))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    deep = np.asarray(upright.convert("L")).astype(np.uint16) << 8
    found = predict.predict(
        forms["run"],
        [
            np.asarray(upright),
            upright,
            turned,
            upright.convert("RGBA"),
            upright.convert("CMYK").convert("RGB"),
            Image.fromarray(deep),
            Image.fromarray(deep.astype(np.int32)),
        ],
    )
    found += predict.predict(forms["run"], upright)
    for predictions in found:
        _assert_alike(predictions, found[0])
    for wrong in (Image.new("F", (4, 4)), Image.fromarray(-deep.astype("i4"))):
        with pytest.raises(DataError, match="its pixels"):
            predict.predict(forms["run"], wrong)


def test_files_that_exif_turns(forms, images, tmp_path):
    with Image.open(images[0]) as opened:
        upright = opened.convert("RGB").resize((40, 28))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    for suffix in ("png", "webp"):
        upright.transpose(Image.Transpose.ROTATE_90).save(
            tmp_path / f"turned.{suffix}", exif=exif, lossless=True
        )
    paths = sorted(tmp_path.iterdir())
    for form in ("run", "keras", "saved_model"):
        found = predict.predict(forms[form], paths)
        assert len(found) == 3
        for predictions in found:
            _assert_alike(predictions, found[0])


def test_forms_of_images(forms, images, tmp_path):
    """Files of any format and colour mode, bytes and arrays agree."""
    path = images[0]
    with Image.open(path) as image:
        gray = image.copy()
    same = [path, open(path, "rb").read(), np.asarray(gray.convert("RGB"))]
    for mode in ("RGB", "RGBA", "LA", "P"):
        file = tmp_path / f"{mode}.png"
        gray.convert(mode).save(file)
        same.append(file)
    for suffix in ("bmp", "gif", "webp"):
        file = tmp_path / f"image.{suffix}"
        gray.save(file, lossless=True)
        same.append(file)
    found = predict.predict(forms["run"], same)
    assert len(found) == len(same)
    for predictions in found:
        _assert_alike(predictions, found[0])
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
    folder.mkdir()
    for name in ("config.yaml", "class_names.txt"):
        shutil.copy(forms["run"] / name, folder)
    shutil.copytree(forms["run"] / "checkpoints", folder / "checkpoints")
    text = (folder / "config.yaml").read_text()
    photos = str(forms["run"].parent / "nowhere")
    lines = [
        f"  ds_name: {photos}" if "ds_name" in line else line
        for line in text.splitlines()
    ]
    (folder / "config.yaml").write_text("\n".join(lines))
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
    specs = []
    real = ServingSpec.from_config
    monkeypatch.setattr(
        ServingSpec,
        "from_config",
        lambda *arguments: specs.append(real(*arguments)) or specs[-1],
    )
    image = np.zeros([50, 40, 3], np.uint8)
    predict.predict("efficientnetv2-s", image)
    assert asked == {"name": "efficientnetv2-s", "weights": "imagenet"}
    words = {0: "tench", 282: "tiger cat", 517: "crane (machine)"}
    found = predict.predict("efficientnetv2-s", image, top=1000)[0]
    assert {e.label: e.name for e in found}.items() >= words.items()
    predict.load_classifier("efficientnet-b0", weights=str(tmp_path))
    assert asked["weights"] == str(tmp_path)
    assert [(s.image_size, s.mode) for s in specs] == [
        (384, "v2"),
        (384, "v2"),
        (224, "v1"),
    ]


def test_the_float_policy_stays(forms):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        predict.load_classifier(forms["run"])
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_damaged_models(forms, tmp_path):
    shutil.copytree(forms["saved_model"], tmp_path / "saved")
    (tmp_path / "saved/saved_model.pb").write_bytes(b"no")
    with pytest.raises(UserError, match="not a SavedModel"):
        predict.load_classifier(tmp_path / "saved")
    (tmp_path / "saved/assets/class_names.txt").unlink()
    with pytest.raises(UserError, match="class_names.txt"):
        predict.load_classifier(tmp_path / "saved")
    data = forms["keras"].read_bytes()
    (tmp_path / "cut.keras").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is truncated"):
        predict.load_classifier(tmp_path / "cut.keras")


def test_a_saved_model_scores_as_its_run(folder_run, source):
    classifier = predict.load_classifier(folder_run / "saved_model")
    images = np.repeat(source.images, 3, axis=-1)
    split = ArraySource(images, source.labels, source.class_names)
    result = predict.evaluate_classifier(classifier, split, batch_size=64)
    assert result["images"] == 200
    metrics = json.loads((folder_run / "metrics.json").read_text())["test"]
    for name in ("top1", "top5"):
        assert result[name] == pytest.approx(metrics[name])
    # Another order of the classes, and only some of them.
    few = split.labels >= 5
    other = ArraySource(
        images[few], 9 - split.labels[few], source.class_names[:4:-1]
    )
    again = predict.evaluate_classifier(classifier, other)
    assert again["images"] == 100 and again["top1"] > 0.9


def test_a_class_that_the_model_does_not_know(folder_run, source):
    classifier = predict.load_classifier(folder_run / "saved_model")
    names = ["zebra", *source.class_names[1:]]
    with pytest.raises(DataError, match="does not know the class 'zebra'"):
        predict.evaluate_classifier(
            classifier, dataclasses.replace(source, class_names=names)
        )


def test_weights_without_a_run(folder_run, capfd):
    """The command, with a run's checkpoint as a user's own weights."""
    from efficientnetv2 import cli
    from efficientnetv2.commands.run import by_mode

    photos = folder_run.parent / "photos"
    architecture = folder_run.parent / "tiny.yaml"
    saved = yaml.safe_load((folder_run / "config.yaml").read_text())
    model = {**saved["model"], "model_name": "tiny"}
    architecture.write_text(
        yaml.safe_dump(
            {
                "model": model,
                "eval": {"isize": 24},
                "data": {"augname": None, "eval_transformations": []},
            }
        )
    )
    arguments = [
        "--mode=eval",
        f"--model_name={architecture}",
        f"--weights={folder_run}",
        f"--dataset={photos}",
    ]
    with pytest.raises(SystemExit) as ended:
        cli.start(by_mode, "main", arguments)
    output = capfd.readouterr()
    assert ended.value.code == 0, output.err
    metrics = json.loads((folder_run / "metrics.json").read_text())["test"]
    assert f"top-1 {metrics['top1']:.2%}" in output.out
    assert "(200 images, " in output.out
    with pytest.raises(SystemExit) as ended:
        cli.start(by_mode, "main", [*arguments, "--model_dir=there"])
    assert "leave out --model_dir" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.start(by_mode, "main", arguments[:1] + arguments[2:3])
    assert "needs --model_name and --dataset" in capfd.readouterr().err
