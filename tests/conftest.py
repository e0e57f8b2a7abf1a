"""Fixtures that several test files share."""

import contextlib
import dataclasses
import io
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import numpy as np
import pytest

from efficientnetv2 import config as config_lib

# The same examples every time; `make fuzz` explores others, and more.
hypothesis.settings.register_profile(
    "default", derandomize=True, database=None, deadline=None
)
hypothesis.settings.register_profile(
    "explore", database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("default")
_EXPLORING = 20


def examples(count: int) -> hypothesis.settings:
    """Returns settings for so many examples; for more of them in `explore`."""
    exploring = not hypothesis.settings.default.derandomize
    return hypothesis.settings(
        max_examples=count * (_EXPLORING if exploring else 1)
    )


def pytest_collection_modifyitems(items):
    """Marks what needs a run of some length."""
    for item in items:
        if "folder_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


REFERENCE = pathlib.Path(__file__).parent / "testdata" / "reference"

# A model and a schedule that train in seconds, whatever the recipe has.
TINY = (
    "model.blocks=r1_k3_s1_e1_i8_o8_c1|r2_k3_s2_e2_i8_o16_c1"
    "|r2_k3_s2_e2_i16_o24_se0.25,"
    "model.width_coefficient=1.0,model.feature_size=32,"
    "train.isize=24,data.ibase=16,train.isize_rule=code,train.batch_size=32,"
    "train.optimizer=rmsprop,train.lr_base=0.016,train.weight_decay=1.0e-5,"
    "eval.isize=24,eval.every_epochs=1.0"
)


# --- Programs and errors ------------------------------------------------------


def run_program(*arguments, module="efficientnetv2.main", **kwargs):
    """Runs a program of the package to its end; keeps what it writes."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, **kwargs
    )


def start_program(*arguments, module="efficientnetv2.main", **kwargs):
    """Starts a program of the package, whose stdout has its stderr, too."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def run_code(code, **kwargs):
    """Runs code in a process of its own, which must succeed; its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def raises(kind, *words):
    """Expects an error whose message has all the words."""
    with pytest.raises(kind) as error:
        yield
    for word in words:
        assert str(word) in str(error.value), (word, str(error.value))


def assert_same(arrays, expected, atol=0, leave=None):
    """Compares arrays by name; `leave` is in the names of those left out."""
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        if leave is None or leave not in name:
            np.testing.assert_allclose(
                array, expected[name], rtol=0, atol=atol, err_msg=name
            )


# --- Data and runs ------------------------------------------------------------


@pytest.fixture(scope="session")
def reference() -> pathlib.Path:
    """The folder with numbers of the reference implementation."""
    return REFERENCE


@pytest.fixture
def tiny_config():
    """Returns a function from further overrides to a tiny configuration."""

    def load(overrides: str = "", **kwargs):
        text = f"{TINY},{overrides}" if overrides else TINY
        return config_lib.load("fashion_mnist", hparam_str=text, **kwargs)

    return load


def make_source():
    """Returns 200 small examples whose class can be seen in the picture."""
    from efficientnetv2.data.sources import ArraySource

    labels = np.arange(200, dtype=np.int64) % 10
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (200, 28, 28, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, label * 2 : label * 2 + 4] += 150
    return ArraySource(images, labels, [f"class {k}" for k in range(10)])


@pytest.fixture(scope="session")
def source():
    """The examples of `make_source`."""
    return make_source()


@pytest.fixture(scope="session")
def photos(tmp_path_factory, source):
    """A folder of the examples of `make_source`, the same in each split."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    return write_photos(folder, lambda _: source)


def encode(image, form="JPEG", **options) -> bytes:
    """Returns an image of Pillow as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_photos(
    folder, load, form="folder", images_per_class=None, **changes
) -> str:
    """Writes splits, which `load` returns by name; returns their --dataset.

    `changes` are those to what the registry says of Fashion-MNIST.
    """
    from efficientnetv2.data import output, registry

    info = registry.load_info("fashion_mnist")
    changes = {"class_names": load("train").class_names, **changes}
    info = dataclasses.replace(info, **changes)
    args = info, load, pathlib.Path(folder), form, images_per_class
    return str(output.write_dataset(*args))


@pytest.fixture
def small_data(monkeypatch, source):
    """Every split of every dataset is the same 200 examples."""
    from efficientnetv2.data import loading, registry

    splits = {
        name: registry.Split(200, part="train")
        for name in ("train", "minival", "trainval", "eval")
    }
    info = dataclasses.replace(
        registry.load_info("fashion_mnist"),
        splits=splits,
        class_names=source.class_names,
    )
    monkeypatch.setattr(registry, "load_info", lambda _: info)
    monkeypatch.setattr(loading, "load_from", lambda *_, **__: source)


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory, source):
    """The model_dir of a finished run on a folder of images, `photos`.

    Its network is sure of what it sees, so that formats can be compared.
    """
    from PIL import Image

    from efficientnetv2 import api

    root = tmp_path_factory.mktemp("folder_run")
    for index, (image, label) in enumerate(
        zip(source.images, source.labels, strict=True)
    ):
        for split in ("train", "val"):
            folder = root / "photos" / split / source.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(folder / f"{index:03d}.png")
    config = config_lib.load(
        str(root / "photos"),
        recipe="fashion_mnist",
        hparam_str=f"{TINY},train.epochs=24,train.stages=1,train.lr_base=0.1,"
        "train.optimizer=rmsprop,train.weight_decay=1e-5,"
        "train.label_smoothing=0,model.dropout_rate=0,model.survival_prob=1,"
        "data.augname=null,data.mixup_alpha=0,data.cutmix_alpha=0,"
        "train.lr_warmup_epoch=1,train.ema_decay=0.9,"
        "data.transformations=null,eval.every_epochs=24",
    )
    api.execute(config, root / "run", log=lambda _: None)
    return root / "run"


def engine_and_batch(config, source):
    """Returns an engine that has done fifty steps, and a batch for it."""
    from efficientnetv2 import engines
    from efficientnetv2.data import pipeline

    plan = config_lib.run_plan(config)
    engine = engines.create(config, plan)
    engine.restore({**engine.arrays(), "step": np.int64(50)}, "the test")
    engine.optimizer.iterations.assign(50)
    own = dataclasses.replace(plan, num_images=200, steps_per_epoch=6)
    dataset = pipeline.training_dataset(source, config, own)
    return engine, next(iter(dataset))
