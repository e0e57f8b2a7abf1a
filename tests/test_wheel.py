"""The package as a wheel has it, away from the checkout."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("efficientnetv2", "hparams", "datasets")
BUILD = ("setup.cfg", "setup.py", "pyproject.toml", "README.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    listed = subprocess.run(
        ["git", "ls-files", *PARTS, *BUILD],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    # Not built in the checkout, where it would leave files.
    for name in listed:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "."]
        + ["--wheel-dir", str(root)],
        cwd=source,
        check=True,
    )
    [wheel] = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "site")
    return root / "site"


def _python(site, folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def test_it_holds_one_package_and_all_yaml(site):
    top = {path.name for path in site.iterdir()} - {
        path.name for path in site.glob("*.dist-info")
    }
    assert top == {"efficientnetv2"}
    for part in ("hparams", "datasets"):
        checkout, wheel = (
            {
                path.relative_to(root / part): path.read_bytes()
                for path in (root / part).rglob("*.*")
            }
            for root in (ROOT, site / "efficientnetv2")
        )
        assert wheel == checkout and checkout
    modules, installed = (
        {path.relative_to(root) for path in root.rglob("*.py")}
        for root in (ROOT / "efficientnetv2", site / "efficientnetv2")
    )
    assert installed == modules
    assert (site / "efficientnetv2" / "py.typed").exists()


@pytest.mark.parametrize(
    ("installed", "name"),
    [
        ({"numpy"}, "tensorflow"),
        ({"libtpu", "jax"}, "tensorflow-cpu"),
        ({"tensorflow-cpu"}, "tensorflow-cpu"),
        ({"tensorflow", "libtpu"}, "tensorflow"),
    ],
)
def test_tensorflow_is_the_one_that_the_machine_needs(
    monkeypatch, installed, name
):
    monkeypatch.chdir(ROOT)
    requires = runpy.run_path("setup.py")["requirements"](installed)
    names = [re.split("[<>=]", each)[0] for each in requires]
    assert name in names
    assert not {"tensorflow", "tensorflow-cpu"} - {name} & set(names)
    assert {"keras", "numpy", "pooch"} < set(names)


def test_it_finds_its_yaml_in_an_empty_folder(site, tmp_path):
    program = """
import pathlib, sys
import efficientnetv2
from efficientnetv2 import declarative
assert pathlib.Path(efficientnetv2.__file__).is_relative_to(sys.argv[1])
for recipe in declarative.names("recipes"):
    config = efficientnetv2.load_config("fashion_mnist", recipe=recipe)
    assert config.model.blocks
print(len(declarative.names("models")))
"""
    result = _python(site, tmp_path, "-c", program, str(site))
    assert result.returncode == 0, result.stderr
    models = list((ROOT / "hparams/models").glob("*.yaml"))
    assert int(result.stdout) == len(models)
    result = _python(
        site, tmp_path, "-m", "efficientnetv2.main", "--dataset=fashion-mnist",
        "--model_dir=run",
    )  # fmt: skip
    assert result.returncode in (1, 2)
    assert "fashion_mnist" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
