"""README.md, docs/ and colab/: commands and code run, and all names exist.

Commands and Python blocks run in a folder with a few images, a small network
and few steps. What needs a network, an accelerator or another machine is only
parsed (`_ELSEWHERE`, `_OF_OTHERS`). Blocks marked `text` or `reference`, and
columns headed `reference`, belong to others.
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
from efficientnetv2.study import definition
from tests.conftest import TINY
from tests.study.conftest import write_made_up

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *DOCS, ROOT / "CONTRIBUTING.md"]
# What is typed after `python -m`, to the command.
MODULES = {
    "efficientnetv2.predict": "predict",
    "efficientnetv2.data": "data",
    "efficientnetv2.models": "models",
    "efficientnetv2.speed": "benchmark",
    "efficientnetv2.demo": "demo",
}


def flatten(nested: dict) -> dict:
    """Returns {'train.epochs': ...} of {'train': {'epochs': ...}}."""
    return {
        f"{a}.{b}": x for a, part in nested.items() for b, x in part.items()
    }


SMALL = {
    **flatten(config_lib.parse_hparam_str(TINY)),
    **{"train.epochs": 0.001, "train.min_steps": 8, "train.stages": 1},
    **{"train.lr_warmup_epoch": 0.0, "runtime.strategy": "auto"},
    **{"model.depth_coefficient": 1.0, "eval.split": "minival"},
}
del SMALL["eval.isize"], SMALL["train.isize"], SMALL["data.ibase"]
# Appended, where a command would take long; the last of two flags counts.
_SHORT = {
    "benchmark": ["--steps=1", "--calls=1"],
    "find_lr": ["--steps=20"],
    "export": ["--allow_disagreement"],
}
# What most pages take for granted.
_BEFORE = r"""
efficientnetv2 train --dataset=fashion_mnist --model_dir=runs/fashion_mnist
efficientnetv2 export runs/fashion_mnist --formats=saved_model,keras,litert,onnx
efficientnetv2 data export --dataset=fashion_mnist --output_dir=photos
efficientnetv2 train --dataset=photos --model_dir=runs/photos --image_size=40
"""
_ELSEWHERE = re.compile(
    r"\$|=/|ft_init_ckpt=imagenet|--backend=jax|--study=|--dataset=imagenet"
    r"|path/to/|weights=imagenet|^efficientnetv2 demo"
)
_OF_OTHERS = ("pip", "uv", "docker", "tensorboard", ".", "export", "git")
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHELL = re.compile(r"^( *)[!%]((?:.*\\\n)*.*)", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--([A-Za-z]\w*)")
_SECTIONS = "model|train|eval|data|checkpoint|runtime"
_OPTION = re.compile(rf"(?<![\w./-])({_SECTIONS})\.([a-z]\w*)")
_SUFFIXES = ("md", "keras", "onnx", "ckpt", "tflite", "npz", "yaml", "py")


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
        if not line.startswith("|"):
            head = ""
        else:
            cell, rest = line.replace(r"\|", "")[1:].split("|", 1)
            head = head or cell.strip()
            line = rest if head in ("reference", "message") else line
        kept.append(line)
    return "\n".join(kept)


def command_of(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns (name, arguments) of a command of this project."""
    if words[0] == "efficientnetv2":
        return words[1], words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("efficientnetv2"):
        if words[2] in ("efficientnetv2", "efficientnetv2.main"):
            return "main", words[3:]
        return MODULES[words[2]], words[3:]
    return None


def module_of(name: str):
    return run.by_mode if name == "main" else commands.load_command(name)


def check(name: str, arguments: list[str]) -> None:
    """Checks flags and values, and that names of files exist."""
    given, _ = cli.parse(module_of(name), arguments)
    for flag, kind in (("recipe", "recipes"), ("study", "studies")):
        value = cli.value_of(given, flag)
        if value and not value.endswith(".yaml"):
            declarative.named_or_path(kind, value)
    known = declarative.names("datasets")
    if name in ("train", "main") and cli.value_of(given, "dataset") in known:
        run.load_config(given)


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
    (folder / "runs").mkdir()
    (folder / "results").symlink_to(ROOT / "results")
    study = definition.load("fused")
    write_made_up(folder / "runs/study", study)
    for name, kept in (
        ("first", "seed1"),
        ("second", "trial_18_epochs"),
    ):
        shutil.copytree(
            ROOT / "results/fashion_mnist" / kept, folder / "runs" / name
        )
    [recipe] = blocks(ROOT / "docs/recipes.md", "yaml")
    (folder / "my_recipe.yaml").write_text(recipe[1])
    for _, text in blocks(ROOT / "docs/runs.md", "python"):
        if "class Tracker" in text:
            (folder / "my_tracking.py").write_text(text)
    return folder


@pytest.fixture
def small(place, monkeypatch):
    """Every run is small; the working directory is `place`."""
    load = config_lib.load

    def load_small(*args, saved=None, flags=None, **kwargs):
        if saved is None:
            flags = {**(flags or {}), **SMALL}
        return load(*args, saved=saved, flags=flags, **kwargs)

    monkeypatch.setattr(config_lib, "load", load_small)
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    for line in lines(_BEFORE):
        run_shell(line)
    return place


@functools.cache
def run_shell(line: str) -> None:
    """Runs a line of a block, or parses it where it cannot run here."""
    line = line.removeprefix("!")  # in a notebook
    words = shlex.split(line, comments=True)
    if not words or words[0] in _OF_OTHERS or line.startswith("python3 "):
        return
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True)
        return
    command = command_of(words)
    if command is None:
        _run_python(words)
        return
    name, arguments = command
    if name.startswith("-"):
        subprocess.run([sys.executable, "-m", *words], check=True)
        return
    if "--help" not in arguments:
        check(name, arguments)
    if _ELSEWHERE.search(line):
        return
    if arguments[:1] == ["export"]:
        arguments = [*arguments, "--images_per_class=4"]
        shutil.rmtree(_value(arguments, "output_dir"), ignore_errors=True)
    if name == "train" and "train.extend" not in line:
        _empty_folders(r"--model_dir=(runs/\w+)", line)
    arguments = [*arguments, *_SHORT.get(name, [])]
    with pytest.raises(SystemExit) as ended:
        cli.start(module_of(name), name, arguments)
    assert not ended.value.code, line


def _empty_folders(pattern: str, text: str) -> None:
    """Removes runs: pages train with other options in the same folder.

    The run of `make train` stays, as do its exports.
    """
    for folder in set(re.findall(pattern, text)) - {"runs/fashion_mnist"}:
        shutil.rmtree(folder, ignore_errors=True)


def _value(arguments: list[str], flag: str) -> str:
    start = f"--{flag}="
    [value] = [a.removeprefix(start) for a in arguments if a.startswith(start)]
    return value


def _run_python(words: list[str]) -> None:
    """Runs `python -c`; of a script of this project, checks the flags."""
    assert words[0] == "python", f"who runs {' '.join(words)!r}?"
    if words[1] == "-c":
        subprocess.run([sys.executable, *words[1:]], check=True)
        return
    result = subprocess.run(
        [sys.executable, ROOT / words[1], "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    for flag in _FLAG.findall(" ".join(words)):
        assert f"--{flag}" in result.stdout


@functools.cache
def run_code(code: str) -> None:
    if "efficientnet-lite0.pth" in code:
        code = code.replace('weights="path/to/efficientnet-lite0.pth"', "")
    _empty_folders(r'train\(config, "(runs/\w+)"', code)
    exec(code, {"images": np.zeros([1, 64, 64, 3], np.float32)})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_code_run(page, small):
    for language, text in blocks(page, "", "sh", "python"):
        if language == "python":
            if "class Tracker" not in text:
                run_code(text)
            continue
        for line in lines(text):
            run_shell(line)


# --- Names --------------------------------------------------------------------


def all_flags() -> set[str]:
    found = {"help", "helpfull"}
    for module in (run.by_mode, *map(commands.load_command, commands.NAMES)):
        values = cli.own_flags(module)
        for name in values:
            found.add(name)
            if isinstance(values[name], absl_flags.BooleanFlag):
                found.add(f"no{name}")
    return found


def options() -> set[str]:
    return set(
        flatten(yaml.safe_load((ROOT / "hparams/base.yaml").read_text()))
    )


def script_flags() -> set[str]:
    scripts = (ROOT / "benchmarks").glob("*.py")
    return {
        name
        for script in scripts
        for name in re.findall(r'"--(\w+)"', script.read_text())
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_flags_options_paths_and_links_exist(page):
    text = prose(page)
    assert len(re.findall(r"^```", page.read_text(), re.M)) % 2 == 0
    known = all_flags() | script_flags()
    assert set(_FLAG.findall(text)) <= known
    named = {f"{a}.{b}" for a, b in _OPTION.findall(text) if b not in _SUFFIXES}
    assert named <= options()
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


def test_every_flag_option_and_page_is_documented():
    text = "\n".join(path.read_text() for path in PAGES)
    missing = {name for name in all_flags() if f"--{name}" not in text}
    # A switch is documented as it is used: --noadaptive_mixing or --dry_run.
    switches = {name for name in missing if f"--no{name}" in text}
    switches |= {name for name in missing if f"--{name[2:]}" in text}
    assert missing <= switches
    base = (ROOT / "hparams/base.yaml").read_text()
    for name in options():
        assert re.search(rf"^  {name.partition('.')[2]}:", base, re.M)
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({path.name})" in index for path in DOCS if path != DOCS[0])
    site = (ROOT / "mkdocs.yml").read_text()
    assert all(f" {path.name}\n" in site for path in DOCS)
    for name in efficientnetv2.__all__:
        assert f"`efficientnetv2.{name}`" in (ROOT / "docs/api.md").read_text()


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
                definition.resolve(definition.parse("example", content))
            else:
                assert set(flatten(content)) <= options()


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_pages_begin_with_a_command_and_quote_real_messages(page):
    text = page.read_text()
    if page.name != "README.md":
        assert "```" in text.partition("\n## ")[0]
    rows = text.partition("| message")[2].partition("\n\n")[0]
    for row in re.findall(r"^\| (`.*?) \|", rows, re.M):
        for message in re.findall(r"`([^`]+)`", row):
            if message in ("requires a different Python",):  # pip's
                continue
            parts = re.split(r"\.\.\.|'[^']*'|\b[A-Z]{3,}\b|\d[\d,]*", message)
            longest = max(parts, key=len).strip()
            assert longest in texts_of_code(), f"nothing says {longest!r}"


@functools.cache
def texts_of_code() -> str:
    """Returns every text of the package, with a zero for what is filled in."""
    found = ["has no attribute"]
    for path in (ROOT / "efficientnetv2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "") for part in node.values]
                texts = [p if isinstance(p, str) else "\0" for p in parts]
                found.append("".join(texts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


# --- Notebooks ----------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_short_clear_and_parse(path):
    names = set()
    values = {"MODEL": "efficientnetv2-b0", "EPOCHS": "1", "SIZE": "40"}
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
            command = command_of(shlex.split(line.replace("\\\n", " ")))
            if command:
                names.add(command[0])
                check(*command)
    assert {"train", "predict"} <= {n.replace("main", "train") for n in names}
    assert "colab-badge.svg" in path.read_text()
    assert os.path.getsize(path) < 20_000
