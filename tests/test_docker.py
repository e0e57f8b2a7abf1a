"""docker/ without an engine: what it names exists and fits together.

Each mistake that the checks are for is made in a copy, and must be found.
"""

import argparse
import configparser
import fnmatch
import json
import pathlib
import re
import shlex

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from efficientnetv2 import cli, commands
from efficientnetv2.commands.run import by_mode
from efficientnetv2.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE = (ROOT / "docker/compose.yaml").read_text()
IGNORE = (ROOT / ".dockerignore").read_text()
README = (ROOT / "docker/README.md").read_text()

MAIN = "efficientnetv2.main"
SERVICES = {"train", "train-gpu", "tensorboard", "test"}
# A tag that names release and system: 3.11.15-slim-bookworm.
_FULL_TAG = re.compile(r"\d+\.\d+\.\d+(-[a-z]+)*-[a-z]+")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)")
_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# --- Dockerfile -------------------------------------------------------------


class Stage:
    """A stage, with what it has from the stages before it.

    Attributes:
        name: what AS says.
        base: another stage, or an image.
        copies: (sources, target) of each COPY from the build context.
        sources: stages that it copies or mounts from.
        env: ENV, name to value.
        user, workdir, entrypoint, cmd, volumes: as at its end.
    """

    def __init__(self, name: str, base: "Stage | str"):
        self.name = name
        self.base = base
        self.copies = []
        self.sources = []
        inherited = isinstance(base, Stage)
        self.env = dict(base.env) if inherited else {}
        self.volumes = list(base.volumes) if inherited else []
        self.user = base.user if inherited else "root"
        self.workdir = base.workdir if inherited else "/"
        self.entrypoint = base.entrypoint if inherited else []
        self.cmd = base.cmd if inherited else []

    @property
    def image(self) -> str:
        return self.base if isinstance(self.base, str) else self.base.image

    def add(self, word: str, rest: str) -> None:
        if word == "ENV":
            self.env |= dict(each.split("=", 1) for each in shlex.split(rest))
        elif word in ("USER", "WORKDIR"):
            setattr(self, word.lower(), rest)
        elif word in ("ENTRYPOINT", "CMD"):
            setattr(self, word.lower(), json.loads(rest))
        elif word == "VOLUME":
            self.volumes += json.loads(rest)
        elif word == "COPY":
            words = rest.split()
            paths = [w for w in words if not w.startswith("--")]
            if paths == words:
                self.copies.append((paths[:-1], paths[-1]))
        self.sources += re.findall(
            r"--(?:from=|mount=\S*\bfrom=)([\w-]+)", rest
        )


def instructions(text: str):
    """Yields (word, rest) of each instruction."""
    lines = [x for x in text.splitlines() if not x.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), " ".join(rest.split())


def expand(text: str, values: dict) -> str:
    """Puts in variables, `${NAME:-default}` too."""
    return _VARIABLE.sub(
        lambda m: values.get(m[1] or m[3]) or m[2] or "", str(text)
    )


def arguments(text: str) -> dict[str, str]:
    """Returns the values of the ARGs before the first stage."""
    found = {}
    for word, rest in instructions(text):
        if word == "FROM":
            break
        name, _, value = rest.partition("=")
        found[name] = value
    return found


def stages(text: str, **build_args: str) -> dict[str, Stage]:
    """Returns the stages in their order, with these build arguments."""
    values = arguments(text) | build_args
    found = {}
    for word, rest in instructions(text):
        if word == "FROM":
            base, _, name = expand(rest, values).partition(" AS ")
            stage = Stage(name or str(len(found)), found.get(base, base))
            found[stage.name] = stage
        elif found:
            stage.add(word, rest)
    return found


# --- The build context ------------------------------------------------------


def _expression(pattern: str) -> re.Pattern:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(p, re.escape(p)) for p in parts))


def excluded(path: str, ignore: str) -> bool:
    """Whether .dockerignore keeps a path, or a folder that holds it, out."""
    parts = path.split("/")
    ways = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    found = False
    for line in map(str.strip, ignore.splitlines()):
        if line and not line.startswith("#"):
            expression = _expression(line.removeprefix("!"))
            if any(expression.fullmatch(way) for way in ways):
                found = not line.startswith("!")
    return found


def ignored_by_git() -> list[str]:
    lines = (ROOT / ".gitignore").read_text().split()
    return [line.strip("/") for line in lines]


def files_of(source: str) -> list[str]:
    """Returns paths that a COPY of `source` should bring."""
    if source == ".":
        unwanted = [".git", *ignored_by_git()]
        return [
            path.name
            for path in ROOT.iterdir()
            if not any(fnmatch.fnmatch(path.name, name) for name in unwanted)
        ]
    found = [p for p in (ROOT / source).rglob("*.*") if p.suffix != ".pyc"]
    inside = [p.relative_to(ROOT).as_posix() for p in found]
    names = [f"*/{name}/*" for name in ignored_by_git()]
    return [source] + [
        path
        for path in inside
        if not any(fnmatch.fnmatch(f"{path}/", name) for name in names)
    ]


# --- Checks, each of which returns what is wrong ----------------------------


def stage_faults(found: dict[str, Stage]) -> list[str]:
    faults = []
    for stage in found.values():
        image, _, tag = stage.image.partition(":")
        if not _FULL_TAG.fullmatch(tag.partition("@")[0]):
            faults.append(f"{stage.name}: {stage.image} is not pinned")
        if image == "python":
            wanted = SpecifierSet(_setup()["python_requires"])
            if tag.partition("-")[0] not in wanted:
                faults.append(f"{stage.name}: Python {tag}, not {wanted}")
        for source in stage.sources:
            if source not in found:
                faults.append(f"{stage.name}: there is no stage {source}")
    return faults


def copy_faults(found: dict[str, Stage], ignore: str) -> list[str]:
    faults = []
    for stage in found.values():
        for source in [s for sources, _ in stage.copies for s in sources]:
            if not (ROOT / source).exists():
                faults.append(f"{stage.name}: {source} does not exist")
                continue
            for path in files_of(source):
                if excluded(path, ignore):
                    faults.append(f"{stage.name}: {path} is excluded")
    for name in (".git", *ignored_by_git()):
        for path in (name, f"a/{name}") if name != ".git" else (name,):
            if not excluded(path.replace("*", "x"), ignore):
                faults.append(f"{path} is sent to the builder")
    return faults


def wheel_faults(stage: Stage) -> list[str]:
    """What setup.cfg needs and the stage of the wheel does not copy."""
    options = _setup()
    places = dict(re.findall(r"(\S+) = (\S+)", options["package_dir"]))
    folders = {
        places.get(package, package.replace(".", "/"))
        for package in options["packages"].split()
    }
    copied = set()
    for sources, target in stage.copies:
        for source in sources:
            # A folder is copied as what it holds, a file into the target.
            if not (ROOT / source).is_dir() or target == source:
                copied.add(source)
    needed = {"pyproject.toml", "setup.cfg", "setup.py", "README.md"}
    needed |= {folder.split("/")[0] for folder in folders}
    return [f"wheel: {name} is not copied" for name in needed - copied]


def run_faults(stage: Stage) -> list[str]:
    """What is wrong with an image that users run."""
    faults = []
    if stage.user.partition(":")[0] in ("root", "0", ""):
        faults.append(f"{stage.name}: runs as root")
    if stage.env.get("EFFICIENTNETV2_DATA_DIR") not in stage.volumes:
        faults.append(f"{stage.name}: the data are in no volume")
    if stage.entrypoint == ["python", "-m", MAIN]:
        if f"{stage.workdir}/runs" not in stage.volumes:
            faults.append(f"{stage.name}: runs/ is no volume")
    elif stage.entrypoint != ["python", "-m", "pytest"]:
        faults.append(f"{stage.name}: starts {stage.entrypoint}")
    return faults


def compose_faults(text: str, dockerfile: str) -> list[str]:
    faults = []
    compose = yaml.safe_load(text)
    services = compose["services"]
    if set(services) != SERVICES:
        faults.append(f"services: {sorted(services)}")
    built = {}
    for name, service in services.items():
        build = service["build"]
        context = (ROOT / "docker" / build["context"]).resolve()
        if context != ROOT:
            faults.append(f"{name}: the context is {context}")
        if not (context / build["dockerfile"]).is_file():
            faults.append(f"{name}: there is no {build['dockerfile']}")
        args = build.get("args", {})
        for argument in args.keys() - arguments(dockerfile).keys():
            faults.append(f"{name}: there is no argument {argument}")
        found = stages(dockerfile, **args)
        stage = found.get(build["target"])
        if stage is None:
            faults.append(f"{name}: there is no stage {build['target']}")
            continue
        if stage is not list(found.values())[-1] and name != "test":
            faults.append(f"{name}: {stage.name} is not the default stage")
        faults += stage_faults(found) + run_faults(stage)
        faults += [f"{name}: {x}" for x in mount_faults(service, stage)]
        faults += [f"{name}: {x}" for x in user_faults(service)]
        made = (build["target"], sorted(args.items()))
        if built.setdefault(service["image"], made) != made:
            faults.append(f"{name}: {service['image']} is two images")
    named = {
        expand(volume, {}).partition(":")[0]
        for service in services.values()
        for volume in service["volumes"]
    }
    for volume in named ^ set(compose["volumes"]):
        faults.append(f"volume {volume} is not both declared and used")
    return faults + device_faults(services) + port_faults(services)


def mount_faults(service: dict, stage: Stage) -> list[str]:
    targets = {expand(v, {}).split(":")[1] for v in service["volumes"]}
    return [
        f"{each} is not mounted right" for each in targets ^ {*stage.volumes}
    ]


def user_faults(service: dict) -> list[str]:
    user = expand(service.get("user", "1000"), {})
    return (
        [] if re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user) else [f"user {user}"]
    )


def device_faults(services: dict) -> list[str]:
    faults = []
    for name, service in services.items():
        gpu = service["build"].get("args", {}).get("DEVICE") == "gpu"
        reserved = (
            service.get("deploy", {})
            .get("resources", {})
            .get("reservations", {})
            .get("devices", [])
        )
        right = any(
            each.get("driver") == "nvidia" and "gpu" in each["capabilities"]
            for each in reserved
        )
        if gpu != right or gpu != (name == "train-gpu"):
            faults.append(
                f"{name}: the GPU's image and device are not both there"
            )
    return faults


def port_faults(services: dict) -> list[str]:
    faults = []
    for name, service in services.items():
        listens = [
            word.removeprefix("--port=")
            for word in service.get("command", [])
            if word.startswith("--port=")
        ]
        inside = [port.split(":")[-1] for port in service.get("ports", [])]
        if inside != listens:
            faults.append(f"{name}: port {inside}, but it listens on {listens}")
    return faults


# --- Commands ---------------------------------------------------------------


def compose_commands(text: str) -> list[tuple[str, list[str]]]:
    """Returns (module, words after it) of each service but `test`."""
    found = []
    for name, service in yaml.safe_load(text)["services"].items():
        if name != "test":
            [module] = service.get("entrypoint", [MAIN])
            found.append((module, service["command"]))
    return found


def readme_commands(text: str) -> list[tuple[str, list[str]]]:
    """Returns (module, words after it) of the commands in docker/README.md."""
    found = []
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:2] == ["docker", "run"]:
                found.append(_of_run(words))
            elif words[:2] == ["docker", "compose"] and "run" in words:
                rest = [w for w in words[words.index("run") :] if w != "--rm"]
                if rest[2:]:
                    found.append((MAIN, rest[2:]))
    return [each for each in found if each]


def _of_run(words: list[str]) -> tuple[str, list[str]] | None:
    image = next(w for w in words if w.startswith("efficientnetv2:"))
    options, rest = words[: words.index(image)], words[words.index(image) + 1 :]
    if "--entrypoint" not in options:
        return MAIN, rest
    return (rest[1], rest[2:]) if rest[0] == "-m" else None


def flag_faults(given_commands: list[tuple[str, list[str]]]) -> list[str]:
    """Says which flags do not exist, or not with this value."""
    faults = []
    for module in sorted({module for module, _ in given_commands}):
        given = [words for each, words in given_commands if each == module]
        if module == "tensorboard":
            faults += [f for words in given for f in _tensorboard_faults(words)]
            continue
        name = module.removeprefix("efficientnetv2.")
        for words in given:
            try:
                cli.parse(
                    by_mode if name == "main" else commands.load(name), words
                )
            except UserError as error:
                faults.append(f"{module}: {error}")
    for _, words in given_commands:
        for word in words:
            if re.match(r"--(model_dir|model|logdir)=(?!runs(/|$))", word):
                faults.append(f"{word} is in no volume")
    return faults


def _tensorboard_faults(words: list[str]) -> list[str]:
    from tensorboard.plugins.core import core_plugin

    parser = argparse.ArgumentParser(allow_abbrev=False)
    core_plugin.CorePluginLoader().define_flags(parser)
    _, unknown = parser.parse_known_args(words)
    return [f"tensorboard: Unknown command line flag {x!r}" for x in unknown]


def readme_faults(text: str) -> list[str]:
    """What docker/README.md names and is not there, but for flags."""
    faults = []
    blocks = "".join(_FENCE.findall(text)).replace("\\\n", " ")
    known = {s["image"] for s in yaml.safe_load(COMPOSE)["services"].values()}
    volumes = stages(DOCKERFILE)["app"].volumes
    for line in filter(None, blocks.splitlines()):
        words = shlex.split(line)
        for image in re.findall(r"(?<!\S)efficientnetv2:\w+", line):
            if image not in known:
                faults.append(f"there is no image {image}")
        for mount in [
            b for a, b in zip(words, words[1:], strict=False) if a == "-v"
        ]:
            target = mount.split(":")[1]
            if target not in volumes and not mount.endswith(":ro"):
                faults.append(f"{target} is no volume")
        if words[:2] == ["docker", "build"]:
            if words[-1] != "." or not (ROOT / words[3]).is_file():
                faults.append(f"{line} does not fit")
        if words[:2] == ["docker", "compose"]:
            if not (ROOT / words[3]).is_file():
                faults.append(f"there is no {words[3]}")
            names = {w for w in words[5:] if not w.startswith("--")}
            faults += [f"there is no service {n}" for n in names - SERVICES]
        for name in re.findall(r"EFFICIENTNETV2_[A-Z]+", line):
            if f"${{{name}:-" not in COMPOSE:
                faults.append(f"compose.yaml does not read {name}")
    return faults


def _setup(section: str = "options") -> dict[str, str]:
    """Returns a section of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return dict(parser[section])


# --- Tests ------------------------------------------------------------------


def all_faults(dockerfile=DOCKERFILE, compose=COMPOSE, ignore=IGNORE):
    found = stages(dockerfile)
    return [
        *copy_faults(found, ignore),
        *wheel_faults(found["wheel"]),
        *compose_faults(compose, dockerfile),
    ]


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def test_everything_fits():
    assert all_faults() == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("3.11.15-slim-bookworm", "3.11-slim-bookworm", "not pinned"),
        ("3.11.15-slim-bookworm", "3.11.15", "not pinned"),
        (":3.11.15-slim-bookworm", "", "not pinned"),
        ("python:3.11.15", "python:3.14.1", "Python 3.14.1"),
        ("COPY hparams hparams\n", "", "hparams is not copied"),
        ("COPY datasets datasets\n", "COPY datasets .\n", "datasets is not"),
        ("COPY datasets", "COPY data", "data does not exist"),
        (" README.md", "", "README.md is not copied"),
        ("USER 1000:1000", "USER 0:0", "runs as root"),
        ("USER 1000:1000\n", "", "runs as root"),
        ("from=wheel", "from=wheels", "no stage wheels"),
        ("AS app", "AS application", "no stage app"),
        ("AS gpu-base", "AS cuda-base", "gpu-base is not pinned"),
        ("ARG DEVICE=cpu", "ARG KIND=cpu", "no argument DEVICE"),
        ('"/data", "/work/runs"', '"/data"', "runs/ is no volume"),
        ("DATA_DIR=/data", "DATA_DIR=/work/data", "the data are in no volume"),
        ("efficientnetv2.main", "efficientnetv2.cli", "starts"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(old, new, fault):
    faults = all_faults(dockerfile=replaced(DOCKERFILE, old, new))
    assert fault in "\n".join(faults)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("  tensorboard:\n", "  board:\n", "services"),
        ("context: ..", "context: .", "the context is"),
        ("docker/Dockerfile", "Dockerfile", "there is no Dockerfile"),
        ("target: app", "target: wheels", "no stage wheels"),
        ("target: app", "target: base", "not the default stage"),
        (":/work/runs", ":/runs", "/runs is not mounted right"),
        ("volumes:\n  data:\n", "volumes:\n", "volume data"),
        (":-1000:1000}", ":-0:0}", "user 0:0"),
        ("driver: nvidia", "driver: amd", "the GPU's image and device"),
        ("DEVICE: gpu", "DEVICE: cpu", "the GPU's image and device"),
        ("efficientnetv2:gpu", "efficientnetv2:cpu", "is two images"),
        ("6006:6006", "6006:6007", "port"),
    ],
)
def test_a_mistake_in_the_compose_file_is_found(old, new, fault):
    faults = all_faults(compose=replaced(COMPOSE, old, new))
    assert fault in "\n".join(faults)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("**/runs\n", "", "runs is sent"),
        ("**/runs\n", "runs\n", "a/runs is sent"),
        ("**/.venv\n", "", ".venv is sent"),
        (".git\n", "", ".git is sent"),
        (".git\n", ".git*\n", ".gitignore is excluded"),
        (".git\n", ".git\nhparams\n", "hparams is excluded"),
        (".git\n", ".git\n**/*.yaml\n", "hparams/base.yaml is excluded"),
        (".git\n", ".git\n**/data\n", "efficientnetv2/data/"),
    ],
)
def test_a_mistake_in_dockerignore_is_found(old, new, fault):
    assert fault in "\n".join(all_faults(ignore=replaced(IGNORE, old, new)))


def test_the_last_match_of_dockerignore_counts():
    assert excluded("a/b/c.txt", "a")
    assert excluded("a/b/c.txt", "*\n!a\na/b")
    assert not excluded("a/b/c.txt", "a\n!a/b")
    assert not excluded("a/b/c.txt", "*.txt")
    assert excluded("a/b/c.txt", "**/*.txt")
    assert not excluded("abc", "# abc\na")


def test_tensorflow_is_the_one_of_setup_cfg():
    version = arguments(DOCKERFILE)["TENSORFLOW"]
    lines = _setup()["install_requires"].split("\n")
    wanted = map(Requirement, filter(None, lines))
    [tensorflow] = [each for each in wanted if each.name == "tensorflow"]
    assert version in tensorflow.specifier
    pins = re.findall(r'"tensorflow\S*"', DOCKERFILE)
    assert pins == [
        '"tensorflow==${TENSORFLOW}"',
        '"tensorflow[and-cuda]==${TENSORFLOW}"',
    ]


def test_extras_are_those_of_setup_cfg():
    wanted = set(re.findall(r"\[([a-z]+)\]['\"]", DOCKERFILE))
    assert wanted == {"export", "test"}
    assert wanted <= set(_setup("options.extras_require").keys())


def test_the_image_of_tests_runs_what_make_test_runs():
    stage = stages(DOCKERFILE)["test"]
    makefile = (ROOT / "Makefile").read_text()
    [line] = re.findall(r"^test: setup\n\t(.*)$", makefile, re.MULTILINE)
    assert line == "$(BIN)/" + " ".join(stage.entrypoint + stage.cmd)


def test_flags_exist():
    commands = compose_commands(COMPOSE) + readme_commands(README)
    modules = {module for module, _ in commands}
    assert modules == {MAIN, "efficientnetv2.predict", "tensorboard"}
    assert flag_faults(commands) == []


def test_a_wrong_flag_is_found():
    text = replaced(COMPOSE, "--dataset", "--data_set")
    text = replaced(text, "--logdir", "--log_dir")
    text = replaced(text, "=runs/fashion_mnist_gpu", "=out/fashion_mnist")
    page = replaced(README, "--mode=eval", "--mode=evaluate")
    page = replaced(page, "--model=runs/fashion_mnist", "--models=runs/x")
    faults = flag_faults(compose_commands(text) + readme_commands(page))
    for word in ("data_set", "log_dir", "out/", "evaluate", "models"):
        assert word in "\n".join(faults)


def test_readme_names_what_there_is():
    assert readme_faults(README) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("efficientnetv2:cpu ", "efficientnetv2:tpu ", "no image"),
        ("_runs:/work/runs ", "_runs:/runs ", "/runs is no volume"),
        ("-f docker/Dockerfile", "-f Dockerfile", "does not fit"),
        ("-f docker/compose.yaml", "-f compose.yaml", "no compose.yaml"),
        ("up train-gpu", "up gpu", "no service gpu"),
        ("EFFICIENTNETV2_USER", "EFFICIENTNETV2_UID", "does not read"),
    ],
)
def test_a_mistake_in_the_readme_is_found(old, new, fault):
    assert fault in "\n".join(readme_faults(replaced(README, old, new)))
