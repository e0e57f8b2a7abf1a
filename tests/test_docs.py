"""README.md and docs/: every name, command and link that they give exists.

What is checked of a page:

- flags: those of a command line against its command, others against all
  commands;
- options such as `train.epochs`, and `config.train.epochs` in Python;
- names of recipes, models, datasets, studies, modes, strategies and formats;
- links, headings that they point to, and paths of the repository;
- Python: it compiles, and what it takes from the package is there;
- YAML: recipes, datasets and studies are what the program reads;
- messages, the first column of a table whose head begins with `message`: the
  longest piece between names, numbers and dots is a text of the code.

Not checked is what belongs to others: the first column of a table whose head
begins with `reference`, and blocks that are marked `reference`.
"""

import ast
import dataclasses
import functools
import inspect
import json
import pathlib
import re
import shlex

import pytest
import yaml
from absl import flags as absl_flags

import efficientnetv2
from efficientnetv2 import cli, commands, declarative
from efficientnetv2 import config as config_lib
from efficientnetv2.commands.run import by_mode
from efficientnetv2.data import registry
from efficientnetv2.errors import UserError
from efficientnetv2.serving import formats
from efficientnetv2.study import definition

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *DOCS, *NOTEBOOKS]
# What is typed, to the module of the command.
COMMANDS = {
    **{
        f"efficientnetv2 {name}": commands.load(name) for name in commands.NAMES
    },
    "efficientnetv2.main": by_mode,
    "efficientnetv2.predict": commands.load("predict"),
    "efficientnetv2.data": commands.load("data"),
    "efficientnetv2.models": commands.load("models"),
    "efficientnetv2.study.ablation": commands.load("study"),
    "benchmarks/run.py": None,
}
# Folders that the examples make or have.
USERS_FOLDERS = ("photos",)
KINDS = {
    "recipe": "recipes",
    "model_name": "models",
    "dataset": "datasets",
    "study": "studies",
}
SECTIONS = ("model", "train", "eval", "data", "checkpoint", "runtime")
# Of pip.
_MESSAGES_OF_OTHERS = ("requires a different Python",)
_SECTION = "|".join(SECTIONS)
# Files and not options: model.keras.
_SUFFIXES = ("md", "keras", "onnx", "ckpt", "tflite", "npz", "h5", "yaml")
_OPTION = re.compile(rf"(?<![\w./-])({_SECTION})\.([A-Za-z_]\w*)")
_FLAG = re.compile(r"(?<![\w-])--([A-Za-z]\w*)")
_VALUE = re.compile(r"--(\w+)=([\w./,-]+)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"(?<![\w./-])((?:benchmarks|datasets|docs|efficientnetv2|hparams|tests)"
    r"/[\w./*-]*)"
)
_PACKAGE = re.compile(r"(?<![\w./-])efficientnetv2((?:\.\w+)+)")
# In a notebook, a line for the shell or for IPython.
_SHELL = re.compile(r"^( *)[!%]((?:.*\\\n)*.*)", re.MULTILINE)
# What the variables of the notebooks may be; others are numbers or folders.
_VALUES = {"MODEL": "efficientnetv2-b0", "photos": "photos"}
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


# --- What there is ----------------------------------------------------------


@functools.cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def _texts(node: ast.AST) -> list[str]:
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


@functools.cache
def flags_of(command: str) -> dict[str, list[str]]:
    """Returns the flags of a command, to the values that one may have."""
    found = {"help": [], "helpfull": []}
    module = COMMANDS[command]
    if module is None:
        tree = _tree(command)
        for node in ast.walk(tree):
            if getattr(getattr(node, "func", None), "attr", "") == (
                "add_argument"
            ):
                found[node.args[0].value.removeprefix("--")] = []
        return found
    values = cli.own_flags(module)
    for name in values:
        found[name] = list(getattr(values[name].parser, "enum_values", ()))
        if isinstance(values[name], absl_flags.BooleanFlag):
            found[f"no{name}"] = []
    return found


@functools.cache
def all_flags() -> frozenset[str]:
    return frozenset().union(*map(flags_of, COMMANDS))


@functools.cache
def options() -> frozenset[str]:
    base = yaml.safe_load((ROOT / "hparams/base.yaml").read_text())
    return frozenset(f"{s}.{name}" for s, part in base.items() for name in part)


def _module_file(parts: list[str]) -> pathlib.Path | None:
    place = ROOT.joinpath(*parts)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _names_in(path: pathlib.Path) -> set[str]:
    """Returns the names on the top level of a module."""
    found = set()
    for node in _tree(str(path.relative_to(ROOT))).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(getattr(t, "id", "") for t in node.targets)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(a.asname or a.name for a in node.names)
    return found


def is_in_package(dotted: str) -> bool:
    """Whether 'efficientnetv2.api.WorkerLost' and the like exist."""
    parts = dotted.split(".")
    if len(parts) == 2 and parts[1] in efficientnetv2.__all__:
        return True
    if _module_file(parts):
        return True
    module = _module_file(parts[:-1])
    return module is not None and parts[-1] in _names_in(module)


@functools.cache
def _public_function(name: str) -> inspect.Signature | None:
    """Returns the arguments of `efficientnetv2.NAME`, without TensorFlow."""
    module, attribute = efficientnetv2._MODULES.get(name, ("zoo", name))
    path = "efficientnetv2/" + module.replace(".", "/") + ".py"
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            every = [*node.args.args, *node.args.kwonlyargs]
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            known = [inspect.Parameter(arg.arg, kind) for arg in every]
            if node.args.kwarg:
                known.append(
                    inspect.Parameter("rest", inspect.Parameter.VAR_KEYWORD)
                )
            return inspect.Signature(known)
    return None


# --- Pages ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Page:
    """A page, without what belongs to others.

    Attributes:
        path: of the file, to which links are relative.
        prose: all but the blocks, and but the messages.
        blocks: (language, text) of each.
        messages: what the program says, by the tables headed `message`.
    """

    path: pathlib.Path
    prose: str
    blocks: list[tuple[str, str]]
    messages: list[str]

    @property
    def text(self) -> str:
        return "\n".join([self.prose, *(text for _, text in self.blocks)])

    def of(self, *languages: str) -> list[str]:
        return [text for kind, text in self.blocks if kind in languages]

    def commands(self) -> list[list[str]]:
        """Returns the words of every command of this project."""
        lines = []
        for block in self.of("", "sh", "bash"):
            lines += block.replace("\\\n", " ").splitlines()
        lines += re.findall(r"`((?:python|efficientnetv2) [^`]+)`", self.prose)
        found = []
        for line in lines:
            match = re.search(
                r"python (?:-m )?(\S+)(.*)|(?:^|/|\()(efficientnetv2 \w+)(.*)",
                line,
            )
            if match is None:
                continue
            name, rest = match[1] or match[3], match[2] or match[4] or ""
            if name in COMMANDS:
                words = shlex.split(rest.rstrip(')"'), comments=True)
                found.append([name, *words])
            elif name.startswith("efficientnetv2 "):
                found.append([name])
        return found


def _cells(prose: str):
    """Yields (head of the first column, first cell, rest) of each line.

    Head and cell are '' outside of tables.
    """
    head = ""
    for line in prose.splitlines():
        if not line.startswith("|"):
            head = ""
            yield "", "", line
            continue
        _, cell, rest = line.replace(r"\|", "").split("|", 2)
        head = head or cell.strip()
        yield head, cell.strip(), rest


def _without_first_column(prose: str, heads: tuple[str, ...]) -> str:
    return "\n".join(
        rest if head in heads else f"{cell} {rest}"
        for head, cell, rest in _cells(prose)
    )


def _first_column(prose: str, wanted: str) -> list[str]:
    return [cell for head, cell, _ in _cells(prose) if head == wanted]


def _code(prose: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose)


def text_of(path: pathlib.Path) -> str:
    """Returns a page as Markdown, notebooks as well."""
    if path.suffix == ".md":
        return path.read_text()
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        shell = "\n".join(line for _, line in _SHELL.findall(text))
        shell = re.sub(r"\{(\w+)\}", lambda m: _VALUES.get(m[1], "40"), shell)
        parts.append(f"```sh\n{shell}\n```")
        python = re.sub(_SHELL, r"\1pass", text)
        parts.append(f"```python\n{python}\n```")
    return "\n".join(parts)


def parse(path: pathlib.Path, text: str) -> Page:
    blocks = [(m[1], m[2]) for m in _FENCE.finditer(text)]
    marks = re.findall(r"^```", text, re.MULTILINE)
    assert len(marks) == 2 * len(blocks), f"{path}: a block is left open"
    prose = _FENCE.sub("", text)
    return Page(
        path,
        _without_first_column(prose, ("reference", "message")),
        [block for block in blocks if block[0] != "reference"],
        _code("\n".join(_first_column(prose, "message"))),
    )


# --- Checks: each yields what is wrong --------------------------------------


def check_flags(page: Page):
    for command, *words in page.commands():
        if command not in COMMANDS:
            yield f"there is no command {command}"
            continue
        given = [match[1] for word in words if (match := _FLAG.match(word))]
        for name in given:
            if name not in flags_of(command):
                yield f"{command} has no --{name}"
        if COMMANDS[command] is not None:
            try:
                cli.parse(COMMANDS[command], words)
            except UserError as error:
                yield f"{command}: {error}"
    for name in _FLAG.findall(page.prose):
        if name not in all_flags():
            yield f"no command has --{name}"


def check_values(page: Page):
    """Names that flags are given."""
    for name, value in _VALUE.findall(page.text):
        kind = KINDS.get(name)
        if kind and not _is_known(kind, value):
            yield f"--{name}={value}: no file of that name"
        for each in value.split(",") if name == "formats" else ():
            if each not in formats.FORMATS:
                yield f"--formats: {each} is none"
        known = [flags_of(command).get(name) for command in COMMANDS]
        known = [values for values in known if values]
        if known and not any(value in values for values in known):
            yield f"--{name}={value} is none of {known}"


def _is_known(kind: str, name: str) -> bool:
    return (
        name in declarative.names(kind)
        or name in USERS_FOLDERS
        or name.isupper()
        or name.endswith(".yaml")
        or name.startswith("/")
    )


def check_options(page: Page):
    python = page.of("python")
    texts = [page.prose, *page.of("", "sh", "bash", "yaml")]
    texts += [text for code in python for text in _texts(ast.parse(code))]
    for section, name in _OPTION.findall("\n".join(texts)):
        if name not in _SUFFIXES and f"{section}.{name}" not in options():
            yield f"there is no option {section}.{name}"
    for section, name in re.findall(
        rf"\bconfig\.({_SECTION})\.(\w+)", "\n".join(python)
    ):
        if f"{section}.{name}" not in options():
            yield f"there is no option {section}.{name}"


def check_configurations(page: Page):
    """What a training command is given makes a configuration."""
    for command, *words in page.commands():
        if command not in ("efficientnetv2.main", "efficientnetv2 train"):
            continue
        given = dict(re.findall(r"--(\w+)=(.*)", "\n".join(words)))
        dataset = given.get("dataset")
        text = given.get("hparam_str", "")
        if dataset not in declarative.names("datasets") or "$" in text:
            dataset = None
        if "/config.yaml" in text or "$" in text:
            text = ""
        if dataset is None:
            # Options are known, whatever the dataset.
            config_lib.load(hparam_str=text)
            continue
        config_lib.load(
            dataset, given.get("model_name"), given.get("recipe"), text
        )


def check_links(page: Page):
    for target in _LINK.findall(page.prose):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        path = (page.path.parent / name) if name else page.path
        if not path.exists():
            yield f"the link {target} leads nowhere"
        elif heading and heading not in _headings(path):
            yield f"{target}: there is no such heading"


def _headings(path: pathlib.Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.strip().replace(" ", "-") for title in kept}


def check_paths(page: Page):
    prose = re.sub(r"\]\([^)]*\)", "]", page.prose)
    for name in _PATH.findall(prose):
        if re.search(r"[A-Z]{3,}", name):
            continue
        if not list(ROOT.glob(name.rstrip("./"))):
            yield f"there is no {name}"
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for block in (*page.of("", "sh", "bash"), *_code(page.prose)):
        for name in re.findall(r"^make ([\w-]+)", block, re.MULTILINE):
            if name not in rules:
                yield f"the Makefile has no {name}"


def check_package(page: Page):
    """Names such as efficientnetv2.api in prose and in Python."""
    for tail in _PACKAGE.findall(page.text):
        if tail.rpartition(".")[2] in ("json", "ipynb", "yaml"):
            continue
        if not is_in_package(f"efficientnetv2{tail}"):
            yield f"there is no efficientnetv2{tail}"


def check_python(page: Page):
    for code in page.of("python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    if name.startswith("efficientnetv2.") and (
                        not is_in_package(name)
                    ):
                        yield f"there is no {name}"
            if isinstance(node, ast.Call):
                yield from _check_call(node)


def _check_call(node: ast.Call):
    function = node.func
    if not (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "efficientnetv2"
    ):
        return
    signature = _public_function(function.attr)
    if signature is None:
        return
    names = [each.arg for each in node.keywords if each.arg]
    try:
        signature.bind_partial(*node.args, **dict.fromkeys(names))
    except TypeError as error:
        yield f"efficientnetv2.{function.attr}: {error}"
        return
    if function.attr not in ("load_config", "build_model"):
        return
    try:
        positional = [ast.literal_eval(each) for each in node.args]
        given = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    except ValueError:
        return
    if function.attr == "build_model":
        name = positional[0] if positional else given["name"]
        if not _is_known("models", name):
            yield f"there is no model {name}"
        return
    bound = inspect.signature(config_lib.load).bind(*positional, **given)
    arguments = dict(bound.arguments)
    if arguments.get("dataset") in USERS_FOLDERS:
        arguments["dataset"] = "cifar10"
    if arguments.get("hparam_str", "").endswith("/config.yaml"):
        del arguments["hparam_str"]
    config_lib.load(**arguments)


def check_yaml(page: Page):
    for text in page.of("yaml"):
        content = yaml.safe_load(text)
        if "source" in content:
            registry.parse_info("example", content)
        elif "arms" in content:
            definition.resolve(definition.parse("example", content))
        else:
            for section, part in content.items():
                for name in part:
                    if f"{section}.{name}" not in options():
                        yield f"there is no option {section}.{name}"


@functools.cache
def _texts_of_code() -> str:
    """Returns every text of the package, a zero for what is filled in."""
    found = []
    for path in sorted((ROOT / "efficientnetv2").rglob("*.py")):
        for node in ast.walk(_tree(str(path.relative_to(ROOT)))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(_literal, node.values)))
            else:
                found.append(_literal(node))
    return "\n".join(filter(None, found))


def _literal(node: ast.AST) -> str:
    if isinstance(node, ast.FormattedValue):
        return "\0"
    value = getattr(node, "value", "")
    return value if isinstance(value, str) else ""


def check_messages(page: Page):
    for message in page.messages:
        if message.startswith(_MESSAGES_OF_OTHERS):
            continue
        pieces = re.split(r"\.\.\.|'[^']*'|\b[A-Z]{3,}\b|\d[\d,]*", message)
        longest = max(pieces, key=len).strip()
        if longest not in _texts_of_code():
            yield f"nothing says {longest!r}"


CHECKS = (
    check_flags,
    check_values,
    check_options,
    check_configurations,
    check_links,
    check_paths,
    check_package,
    check_python,
    check_yaml,
    check_messages,
)


def faults(check, page: Page) -> list[str]:
    try:
        return list(check(page) or ())
    except (config_lib.ConfigError, SyntaxError) as error:
        return [str(error)]


# --- Tests ------------------------------------------------------------------


def _name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("path", PAGES, ids=_name_of)
def test_a_page_names_what_exists(path, check):
    page = parse(path, text_of(path))
    assert not faults(check, page)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name_of)
def test_notebooks_are_kept_without_outputs_and_run_on_any_runtime(path):
    page = parse(path, text_of(path))
    modules = {command[0] for command in page.commands()}
    assert {"efficientnetv2.main", "efficientnetv2.predict"} <= modules
    # Keras has one backend per process, and the kernel is to have none.
    assert not re.search(r"import (keras|tensorflow|jax)", page.text)
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert len("".join(cell["source"]).splitlines()) <= 20


def test_the_commands_are_all_there():
    assert flags_of("efficientnetv2.main").keys() >= {
        "dataset",
        "noadaptive_mixing",
        "noadaptive_regularization",
        "checkpoint",
    }
    assert "strategy" in flags_of("efficientnetv2.main")
    assert "export" in flags_of("efficientnetv2.main")["mode"]
    assert "torch_python" in flags_of("benchmarks/run.py")
    assert "images_per_class" in flags_of("efficientnetv2.data")


def test_the_table_of_contents_has_every_page():
    text = (ROOT / "docs/README.md").read_text()
    linked = set(_LINK.findall(text))
    assert {path.name for path in DOCS} - {"README.md"} <= linked


@pytest.mark.parametrize("path", DOCS, ids=_name_of)
def test_a_page_has_its_commands_in_python_too(path):
    page = parse(path, path.read_text())
    assert page.of("python")
    if path.stem != "README":
        assert page.commands()
        assert "## What goes wrong" in page.prose


_MISTAKES = {
    check_flags: (
        "```\npython -m efficientnetv2.main --datasets=cifar10\n```",
        "```\npython -m efficientnetv2.main \\\n  --top=5\n```",
        "Give `--no_such_flag`.",
        "`python -m efficientnetv2.predict --jsn a.png`",
        "`efficientnetv2 predict --top=few a.png`",
        "`efficientnetv2 predict --jsn a.png`",
        "```\nefficientnetv2 trian --dataset=cifar10\n```",
        "| reference | here |\n| --- | --- |\n| `--tpu` | `--tpus` |",
    ),
    check_values: (
        "```\npython -m efficientnetv2.main --dataset=fashion_mnits\n```",
        "`--recipe=best`",
        "`--model_name=efficientnetv2-z`",
        "`--mode=training`",
        "`--strategy=tpus`",
        "`--formats=saved_model,tflite`",
    ),
    check_options: (
        "`train.epoch`",
        "```\nx --hparam_str=data.rem=10\n```",
        "```python\nconfig.train.sizes\n```",
        '```python\nload("train.epoch=1")\n```',
    ),
    check_configurations: (
        "```\nefficientnetv2 train --dataset=fashion_mnist "
        "--hparam_str=train.optimizer=rmspropp\n```",
        "```\npython -m efficientnetv2.main --dataset=fashion_mnist "
        "--hparam_str=train.optimizer=rmspropp\n```",
    ),
    check_links: (
        "[a](no_such_page.md)",
        "[a](../README.md#no-such-heading)",
    ),
    check_paths: (
        "`hparams/bases.yaml`",
        "`make traim`",
        "```\nmake tests\n```",
    ),
    check_package: (
        "`efficientnetv2.build_modell`",
        "```python\nefficientnetv2.trian(config)\n```",
        "```\npython -m efficientnetv2.predictions\n```",
    ),
    check_python: (
        "```python\nthis is no Python\n```",
        "```python\nfrom efficientnetv2.api import trian\n```",
        "```python\nefficientnetv2.train(config, model_folder=1)\n```",
        '```python\nefficientnetv2.load_config("fashion_mnits")\n```',
        '```python\nefficientnetv2.build_model("efficientnetv2-z")\n```',
    ),
    check_yaml: (
        "```yaml\ntrain:\n  epoch: 3\n```",
        "```yaml\nsource: tfrecords\n```",
        "```yaml\narms:\n  a: {overrides: train.epochs=2}\n```",
    ),
    check_messages: (
        "| message | what |\n| --- | --- |\n| `The dog ate 3 images.` | - |",
    ),
}


@pytest.mark.parametrize(
    ("check", "text"),
    [(check, text) for check in CHECKS for text in _MISTAKES[check]],
)
def test_a_mistake_is_found(check, text):
    assert faults(check, parse(ROOT / "docs/example.md", f"{text}\n"))


def test_what_belongs_to_others_is_left_alone():
    text = (
        "| reference | here |\n| --- | --- |\n| `--tpu`, `train.sched` | - |\n"
        "\n```reference\npython main.py --use_tpu\n```\n"
    )
    page = parse(ROOT / "docs/example.md", text)
    assert not [fault for check in CHECKS for fault in faults(check, page)]
