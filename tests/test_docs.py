"""README.md, docs/ and colab/: commands and code run, and all names exist.

Commands and Python blocks run in a folder with a few images, a small network
and few steps. What needs a network, an accelerator or another machine is only
parsed (`_ELSEWHERE`), and programs of others are left out (`_OF_OTHERS`), as
are blocks marked `text` or `reference` and columns headed `reference`.
"""

import ast
import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from absl import flags as absl_flags
from PIL import Image

import efficientnetv2
from efficientnetv2 import cli, commands, declarative
from efficientnetv2 import config as config_lib
from efficientnetv2.commands import run
from efficientnetv2.data import registry
from efficientnetv2.options import OPTIONS
from efficientnetv2.study import definition
from tests.conftest import TINY
from tests.study.conftest import write_made_up

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *DOCS, ROOT / "CONTRIBUTING.md"]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
# What every run here has, whatever its command says.
SMALL = (
    f"{TINY},train.epochs=0.001,train.min_steps=8,train.stages=1,"
    "train.lr_warmup_epoch=0,runtime.strategy=auto,"
    "model.depth_coefficient=1,eval.split=minival"
)
# Appended where a command would take long; the last of two flags counts.
_SHORT = {
    "benchmark": ["--steps=1", "--calls=1"],
    "find_lr": ["--steps=20"],
    "export": ["--allow_disagreement"],
}
# What most pages take for granted.
_BEFORE = """
efficientnetv2 train --dataset=fashion_mnist --model_dir=runs/fashion_mnist
efficientnetv2 export runs/fashion_mnist --formats=saved_model,keras,litert,onnx
efficientnetv2 data export --dataset=fashion_mnist --output_dir=photos
efficientnetv2 train --dataset=photos --model_dir=runs/photos --image_size=40
"""
_ELSEWHERE = re.compile(
    r"\$|=/|ft_init_ckpt=imagenet|--backend=jax|--study=|--dataset=imagenet"
    r"|path/to/|weights=imagenet|^efficientnetv2 demo"
)
_OF_OTHERS = re.compile(r"(pip|uv|docker|tensorboard|\.|export|git|python3) ")
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHELL = re.compile(r"^( *)[!%]((?:.*\\\n)*.*)", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--([A-Za-z]\w*)")
_SECTIONS = "model|train|eval|data|checkpoint|runtime"
_SUFFIXES = "md|keras|onnx|ckpt|tflite|npz|yaml|py"
_OPTION = re.compile(
    rf"(?<![\w./-])((?:{_SECTIONS})\.(?!(?:{_SUFFIXES})\b)[a-z]\w*)"
)


def flatten(nested: dict) -> dict:
    """Returns {'train.epochs': ...} of {'train': {'epochs': ...}}."""
    return {
        f"{a}.{b}": x for a, part in nested.items() for b, x in part.items()
    }


def blocks(path: pathlib.Path, *languages: str) -> list[tuple[str, str]]:
    """Returns (language, text) of the blocks in these languages."""
    found = _FENCE.findall(path.read_text())
    return [block for block in found if block[0] in languages]


def lines(text: str) -> list[str]:
    return [x for x in text.replace("\\\n", " ").splitlines() if x.strip()]


def prose(path: pathlib.Path) -> str:
    """Returns a page without blocks and without columns of others."""
    kept, head = [], ""
    for line in _FENCE.sub("", path.read_text()).splitlines():
        if line.startswith("|"):
            cell, rest = line.replace(r"\|", "")[1:].split("|", 1)
            head = head or cell.strip()
            line = rest if head in ("reference", "message") else line
        else:
            head = ""
        kept.append(line)
    return "\n".join(kept)


def parse(line: str) -> tuple[cli.Command, str, list[str]] | None:
    """Returns command, name and arguments of a line of this project.

    Checks flags and values, and that named files exist; of a script, flags.
    """
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-m"]:
        name = words[2].removeprefix("efficientnetv2").lstrip(".") or "main"
        name, arguments = {"speed": "benchmark"}.get(name, name), words[3:]
    elif words[0] == "efficientnetv2":
        name, arguments = words[1], words[2:]
    else:
        return None
    command = run.by_mode if name == "main" else commands.load_command(name)
    if "--help" in arguments:
        return command, name, arguments
    given, _ = cli.parse(command, arguments)
    for flag, kind in (("recipe", "recipes"), ("study", "studies")):
        value = cli.value_of(given, flag)
        if value and not value.endswith(".yaml"):
            declarative.named_or_path(kind, value)
    known = declarative.names("datasets")
    if name in ("train", "main") and cli.value_of(given, "dataset") in known:
        run.load_config(given)
    return command, name, arguments


# --- Run ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    random = np.random.default_rng(0)
    for name in ("image.png", "a.png", "b.jpg", "cat.png", "folder/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 255, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "results").symlink_to(ROOT / "results")
    write_made_up(folder / "runs/study", definition.load_study("fused"))
    for name, kept in (("first", "seed1"), ("second", "trial_18_epochs")):
        shutil.copytree(
            ROOT / "results/fashion_mnist" / kept, folder / "runs" / name
        )
    [(_, recipe)] = blocks(ROOT / "docs/recipes.md", "yaml")
    (folder / "my_recipe.yaml").write_text(recipe)
    [tracker] = [
        text
        for _, text in blocks(ROOT / "docs/runs.md", "python")
        if "class Tracker" in text
    ]
    (folder / "my_tracking.py").write_text(tracker)
    return folder


@pytest.fixture
def small(place, monkeypatch):
    """Every run is small; the working directory is `place`."""
    load = config_lib.load
    options = flatten(config_lib.parse_hparam_str(SMALL))
    for key in ("eval.isize", "train.isize", "data.ibase"):
        del options[key]

    def load_small(*args, saved=None, flags=None, **kwargs):
        flags = {**(flags or {}), **(options if saved is None else {})}
        return load(*args, saved=saved, flags=flags, **kwargs)

    monkeypatch.setattr(config_lib, "load", load_small)
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    for line in lines(_BEFORE):
        run_shell(line)


@functools.cache
def run_shell(line: str) -> None:
    """Runs a line of a block, or parses it where it cannot run here."""
    words = shlex.split(line, comments=True)
    if not words or _OF_OTHERS.match(line):
        return
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True)
    elif words[:2] == ["python", "-c"]:
        subprocess.run([sys.executable, *words[1:]], check=True)
    elif words[:2] == ["efficientnetv2", "--help"]:
        subprocess.run([sys.executable, "-m", *words], check=True)
    elif parsed := parse(line):
        if not _ELSEWHERE.search(line):
            _run_command(line, *parsed)
    else:
        assert words[0] == "python", f"who runs {line!r}?"
        script = [sys.executable, ROOT / words[1], "--help"]
        known = subprocess.run(
            script, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        assert all(f"--{flag}" in known for flag in _FLAG.findall(line))


def _run_command(line, command, name, arguments) -> None:
    if arguments[:1] == ["export"]:
        arguments = [*arguments, "--images_per_class=4"]
        _remove(r"--output_dir=(\w+)", line)
    if name == "train" and "train.extend" not in line:
        _remove(r"--model_dir=(runs/\w+)", line)
    with pytest.raises(SystemExit) as ended:
        cli.start(command, name, [*arguments, *_SHORT.get(name, [])])
    assert not ended.value.code, line


def _remove(pattern: str, text: str) -> None:
    """Removes folders: pages write other things to the same ones.

    The run of `make train` stays, as do its exports.
    """
    for folder in set(re.findall(pattern, text)) - {"runs/fashion_mnist"}:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def run_code(code: str) -> None:
    code = code.replace('weights="path/to/efficientnet-lite0.pth"', "")
    _remove(r'train\(config, "(runs/\w+)"', code)
    exec(code, {"images": np.zeros([1, 64, 64, 3], np.float32)})


@by_page
def test_commands_and_code_run(page, small):
    for language, text in blocks(page, "", "sh", "python"):
        if language == "python":
            if "class Tracker" not in text:
                run_code(text)
            continue
        for line in lines(text):
            run_shell(line.removeprefix("!"))


# --- Names --------------------------------------------------------------------


def all_flags() -> dict[str, bool]:
    """Returns every flag, and whether it is a switch."""
    found = {"help": False, "helpfull": False}
    for command in (run.by_mode, *map(commands.load_command, commands.NAMES)):
        values = cli.own_flags(command)
        for name in values:
            found[name] = isinstance(values[name], absl_flags.BooleanFlag)
    return found


@by_page
def test_flags_options_paths_and_links_exist(page):
    text = prose(page)
    assert len(re.findall(r"^```", page.read_text(), re.M)) % 2 == 0
    known = {*all_flags(), *(f"no{name}" for name in all_flags())}
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"--(\w+)"', script.read_text()))
    assert set(_FLAG.findall(text)) <= known
    assert set(_OPTION.findall(text)) <= set(OPTIONS)
    for code in re.findall(r"`([^`\n]+)`", text):
        words = code.split()
        if words[0] == "efficientnetv2" and words[1:2] > ["a"]:
            assert words[1] in commands.NAMES, code
        if words[0] == "make":
            run_shell(code)
        if re.match(r"(benchmarks|colab|datasets|docs|hparams|tests)/", code):
            assert list(ROOT.glob(code.rstrip("/"))) or "NAME" in code, code
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert_link(page, target)


def assert_link(page: pathlib.Path, target: str) -> None:
    name, _, heading = target.partition("#")
    path = page.parent / name if name else page
    assert path.exists(), f"{page.name}: {target}"
    if heading:
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
        assert heading in {title.replace(" ", "-") for title in kept}, target


def test_every_flag_public_name_and_page_is_documented():
    text = "\n".join(path.read_text() for path in PAGES)
    for name, is_switch in all_flags().items():
        # A switch is documented as it is used: --noadaptive_mixing.
        no = "(no)?" if is_switch else ""
        assert re.search(rf"--{no}{name}\b", text), name
    api = (ROOT / "docs/api.md").read_text()
    assert all(f"`efficientnetv2.{x}`" in api for x in efficientnetv2.__all__)
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({path.name})" in index for path in DOCS if path != DOCS[0])
    site = (ROOT / "mkdocs.yml").read_text()
    assert all(f" {path.name}\n" in site for path in DOCS)


def test_the_rows_of_the_page_on_scale_are_what_its_code_prints(capsys):
    page = ROOT / "docs/scale.md"
    [(_, code)] = blocks(page, "python")
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 3 and printed in page.read_text()


def test_results_name_no_folders_of_one_machine():
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".json", ".md", ".yaml"):
            found = re.search(r"[\"= ]/(tmp|home|root|work)/", path.read_text())
            assert not found, path


def test_yaml_blocks_are_read():
    for page in DOCS:
        for _, text in blocks(page, "yaml"):
            content = yaml.safe_load(text)
            if "source" in content:
                registry.parse_info("example", content)
            elif "arms" in content:
                definition.resolve(definition.parse_study("example", content))
            else:
                assert set(flatten(content)) <= set(OPTIONS)


@pytest.mark.parametrize("page", DOCS[1:], ids=lambda path: path.name)
def test_pages_begin_with_a_command_and_quote_real_messages(page):
    text = page.read_text()
    assert "```" in text.partition("\n## ")[0]
    rows = text.partition("| message")[2].partition("\n\n")[0]
    for row in re.findall(r"^\| (`.*?) \|", rows, re.M):
        for message in re.findall(r"`([^`]+)`", row):
            parts = re.split(r"\.\.\.|'[^']*'|\b[A-Z]{3,}\b|\d[\d,]*", message)
            longest = max(parts, key=len).strip()
            assert longest in texts_of_code(), f"nothing says {longest!r}"


@functools.cache
def texts_of_code() -> str:
    """Returns every text of the package, and one of pip's."""
    found = ["requires a different Python"]
    for path in (ROOT / "efficientnetv2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


# --- Notebooks ----------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_short_clear_and_parse(path):
    names = set()
    values = {"MODEL": "--model_name=efficientnetv2-b0", "EPOCHS": "1"}
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        assert not cell.get("outputs") and len(text.splitlines()) <= 12
        if cell["cell_type"] == "markdown":
            continue
        ast.parse(_SHELL.sub(r"\1pass", text))
        # Keras has one backend per process, and the kernel is to have none.
        assert not re.search(r"import (keras|tensorflow|jax)", text)
        for _, line in _SHELL.findall(text):
            line = re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], "x"), line)
            if parsed := parse(line.replace("\\\n", " ")):
                names.add(parsed[1])
    assert names >= {"main", "predict"}
    assert "colab-badge.svg" in path.read_text()
    assert os.path.getsize(path) < 20_000
