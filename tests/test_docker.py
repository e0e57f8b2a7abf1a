"""Reads docker/ without building it: whatever the files name must exist."""

import configparser
import pathlib
import re
import shlex

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from efficientnetv2 import cli, commands
from efficientnetv2.commands.run import by_mode

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
README = (ROOT / "docker/README.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
SERVICES = COMPOSE["services"]
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
_LINES = "".join(re.findall(r"^```\n(.*?)^```$", README, re.M | re.S))
README_COMMANDS = [
    shlex.split(line)
    for line in _LINES.replace("\\\n", " ").splitlines()
    if line.startswith("docker ")
]


def given_flags() -> list[tuple[str, list[str]]]:
    """Returns (module, words) of the commands of services and README."""
    found = [
        ("main", service["command"])
        for service in SERVICES.values()
        if "command" in service and "entrypoint" not in service
    ]
    for words in README_COMMANDS:
        if words[1] == "run":
            image = next(w for w in words if re.match(r"\w+:[cg]pu$", w))
            rest = words[words.index(image) + 1 :]
            if "--entrypoint" not in words:
                found.append(("main", rest))
            elif rest[0] == "-m":
                found.append((rest[1].rpartition(".")[2], rest[2:]))
        elif "run" in words:  # docker compose ... run --rm SERVICE FLAGS
            rest = words[words.index("run") + 3 :]
            found += [("main", rest)] if rest else []
    return found


@pytest.mark.parametrize(("module", "words"), given_flags())
def test_flags_exist(module, words):
    command = by_mode if module == "main" else commands.load_command(module)
    cli.parse(command, words)
    for word in words:
        assert not re.match(r"--(model_dir|model)=(?!runs(/|$))", word)


def test_stages_copies_and_base_fit():
    [version] = re.findall(r"^FROM python:([\d.]+)-slim-\w+ ", DOCKERFILE, re.M)
    assert version in SpecifierSet(SETUP["options"]["python_requires"])
    for name in re.findall(r"(?:from=|^FROM )([a-z][\w-]*)\b(?!:)", DOCKERFILE):
        assert name in STAGES
    copied = set()
    for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert all((ROOT / name).exists() for name in copied)
    needed = {"setup.cfg", "setup.py", "pyproject.toml", "README.md"}
    assert needed | {"efficientnetv2", "hparams", "datasets"} <= copied


def test_versions_and_extras_are_those_of_setup_cfg():
    [version] = re.findall(r"^ARG TENSORFLOW=(\S+)$", DOCKERFILE, re.M)
    lines = SETUP["options"]["install_requires"].split("\n")
    wanted = [Requirement(x) for x in lines if x and not x.startswith("#")]
    assert (
        version in next(w for w in wanted if w.name == "tensorflow").specifier
    )
    extras = set(re.findall(r"\[([a-z]+)\]['\"]", DOCKERFILE))
    assert extras == {"export", "test"}
    assert extras <= set(SETUP["options.extras_require"])


def test_images_run_as_a_user_and_keep_data_and_runs_in_volumes():
    assert DOCKERFILE.count("\nUSER 1000:1000\n") == 2
    assert '\nVOLUME ["/data", "/work/runs"]\n' in DOCKERFILE
    assert '["python", "-m", "efficientnetv2.main"]\n' in DOCKERFILE
    assert "EFFICIENTNETV2_DATA_DIR=/data" in DOCKERFILE
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", "**/.venv", "**/runs"} <= set(ignored)


def test_services_build_stages_and_mount_volumes():
    named = set()
    for name, service in SERVICES.items():
        build = service["build"]
        assert build["target"] in STAGES
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert ("deploy" in service) == (name == "train-gpu")
        for volume in service["volumes"]:
            source, target = re.match(
                r"\$\{\w+:-(\w+)\}:(\S+)", volume
            ).groups()
            named.add(source)
            assert target in ("/data", "/work/runs")
    assert named == set(COMPOSE["volumes"])


def test_the_readme_names_files_services_and_images():
    images = {service["image"] for service in SERVICES.values()}
    assert set(re.findall(r"efficientnetv2:\w+", _LINES)) <= images
    for words in README_COMMANDS:
        if "-f" in words:
            assert (ROOT / words[words.index("-f") + 1]).is_file()
        if words[1:2] == ["compose"]:
            names = [w for w in words[4:] if re.fullmatch(r"[a-z-]+", w)]
            assert set(names) <= {*SERVICES, "up", "run", "--rm"}
