"""The results of a study: one JSON file a run, and what must agree in them.

OUTPUT/STUDY/study.json                 the definition, and the seeds
OUTPUT/STUDY/results/ARM/seedN.json     one a finished run
OUTPUT/STUDY/runs/ARM/seedN/            of the run itself; not for keeping
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence

import efficientnetv2
from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative
from efficientnetv2.errors import UserError
from efficientnetv2.study import definition

DEFINITION = "study.json"
_RESULT = re.compile(r"seed(\d+)\.json")
# Parts of the package that do not decide the numbers of a run.
_NOT_OF_RUNS = ("commands", "demo.py", "reports", "study", "serving")


class StudyError(UserError):
    """Results that cannot be read, or that do not belong together."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where the files of a study lie."""

    path: pathlib.Path

    @property
    def definition(self) -> pathlib.Path:
        return self.path / DEFINITION

    def result(self, arm: str, seed: int) -> pathlib.Path:
        return self.path / "results" / arm / f"seed{seed}.json"

    def run(self, arm: str, seed: int) -> pathlib.Path:
        return self.path / "runs" / arm / f"seed{seed}"


def read_json(path: str | os.PathLike):
    """Reads a JSON file.

    Raises:
        StudyError: if it cannot be read, or is no JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise StudyError(
            f"{path} is not valid JSON ({error}). Remove it; the study then "
            "makes it anew."
        ) from None


def read_results(folder: Folder) -> dict[tuple[str, int], dict]:
    """Returns the results that there are, by (arm, seed), sorted."""
    results = {}
    for path in sorted(folder.path.glob("results/*/seed*.json")):
        match = _RESULT.fullmatch(path.name)
        if match:
            results[path.parent.name, int(match[1])] = read_json(path)
    return dict(sorted(results.items()))


def code_hashes(dataset: str) -> dict[str, str]:
    """Returns the SHA-256 of each file that decides the numbers of a run.

    These are the modules of the package, but for `study` and `serving`, and
    the dataset's YAML file, if it has one. The files of `hparams/` need not
    agree: a result holds the resolved configuration.
    """
    package = pathlib.Path(efficientnetv2.__file__).resolve().parent
    files = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in _NOT_OF_RUNS
    }
    if dataset in declarative.names("datasets"):
        name = f"{dataset}.yaml"
        files[f"datasets/{name}"] = (
            declarative.declarative_dir("datasets") / name
        )
    return {
        name: hashlib.sha256(files[name].read_bytes()).hexdigest()
        for name in sorted(files)
    }


def digest(hashes: Mapping[str, str]) -> str:
    """Returns one SHA-256 for all of `code_hashes`."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Returns the names of files that differ, or are only in one."""
    return sorted(
        name
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
    )


def machine() -> dict:
    """Returns {'cpu': model, 'cores': number} of this machine."""
    model = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        model = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        pass
    return {"cpu": model, "cores": os.cpu_count()}


def config_differences(old: Mapping, new: Mapping) -> list[tuple]:
    """Returns (option, old, new) of what makes two configs of an arm differ.

    The seed does not, nor do options that change no number.
    """
    return config_lib.differences(
        old, new, (*config_lib.FREE_OPTIONS, "train.seed")
    )


def _refuse_config(what: str, differences: Sequence[tuple]) -> None:
    if differences:
        lines = config_lib.format_differences(differences, "here")
        raise StudyError(
            f"{what} was made with another configuration:\n{lines}\n"
            "Results of different configurations are not mixed. Name another "
            "--output_dir, or remove that result and its run."
        )


def _refuse_code(what: str, old: Mapping[str, str], new: Mapping) -> None:
    changed = changed_files(old, new)
    if changed:
        lines = "\n".join(f"  {name}" for name in changed)
        raise StudyError(
            f"{what} was made with other code. These files differ:\n{lines}\n"
            "Results of different code are not mixed. Go back to that code, "
            "name another --output_dir, or remove that result and its run."
        )


def check_agreement(
    results: Mapping[tuple[str, int], Mapping],
    configs: Mapping[str, Mapping] | None = None,
    code: Mapping[str, str] | None = None,
) -> None:
    """Checks that results were made by one code, each arm by one config.

    Args:
        results: see `read_results`.
        configs: of the arms that there are now, as nested dicts; None: those
            of one arm must agree with each other.
        code: see `code_hashes`; None: the results must agree with each other.

    Raises:
        StudyError: names the result, and the files or options that differ.
    """
    known = dict(configs or {})
    for (arm, seed), result in results.items():
        what = f"The result of arm {arm}, seed {seed},"
        if configs is not None and arm not in configs:
            raise StudyError(
                f"{what} belongs to no arm of the study."
                + declarative.suggest(arm, list(configs))
                + " Name another --output_dir, or remove that result."
            )
        try:
            code = code or result["code"]
            known.setdefault(arm, result["config"])
            _refuse_code(what, result["code"], code)
            _refuse_config(
                what, config_differences(result["config"], known[arm])
            )
        except KeyError as error:
            raise StudyError(
                f"{what} has no {error}: it is no result of a study."
            ) from None


def check_run_code(path: pathlib.Path, code: Mapping[str, str]) -> None:
    """Checks the `code` that a begun run notes; see `check_agreement`."""
    if path.exists():
        noted = read_json(path).get("code", {})
        _refuse_code(f"The run in {path.parent}", noted, code)


def definition_of(folder: Folder) -> tuple[definition.Study, int]:
    """Returns the study of a folder, and its number of seeds."""
    content = dict(read_json(folder.definition))
    seeds = content.pop("seeds", 0)
    return definition.parse(folder.path.name, content), seeds
