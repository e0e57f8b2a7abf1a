"""The files of a study: what its folder holds, and where it was made.

OUTPUT/STUDY/study.json      the definition, each arm's configuration, the code
OUTPUT/STUDY/times.json      seconds of a step at each image size
OUTPUT/STUDY/tuning.json     strengths: what was tried, and the choice
OUTPUT/STUDY/results.jsonl   one line per finished run
OUTPUT/STUDY/work/           of the runs themselves; not for keeping
"""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Sequence

import efficientnetv2
from efficientnetv2 import declarative, files
from efficientnetv2.errors import UserError

STUDY, TIMES, TUNING = "study.json", "times.json", "tuning.json"
RESULTS, WORK = "results.jsonl", "work"
# What tells one run from another.
KEYS = ("arm", "budget", "strength", "seed", "tunes")
# Parts of the package that do not decide the numbers of a run.
_NOT_OF_RUNS = ("commands", "demo.py", "reports", "study", "serving")


class StudyError(UserError):
    """Results that cannot be read, or that do not belong together."""

    exit_code = 1


def read_json(path: str | os.PathLike):
    """Reads a JSON file.

    Raises:
        StudyError: if it cannot be read, or is not JSON.
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


def read_rows(folder: pathlib.Path) -> list[dict]:
    """Returns the results of all finished runs, of results.jsonl and work/."""
    rows = [read_json(path) for path in sorted(folder.glob(f"{WORK}/*.json"))]
    path = folder / RESULTS
    if path.exists():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows += map(json.loads, lines)
        except ValueError as error:
            raise StudyError(f"{path} is not valid JSON ({error}).") from None
    # Both have what was trained here.
    return list({tuple(row[key] for key in KEYS): row for row in rows}.values())


def write_rows(folder: pathlib.Path, rows: Sequence[dict]) -> None:
    """Writes results.jsonl."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files.write_text(folder / RESULTS, lines)


def code_hashes(dataset: str) -> dict[str, str]:
    """Returns the SHA-256 of each file that decides the numbers of a run.

    These are the modules of the package, but for those of `_NOT_OF_RUNS`, and
    the dataset's YAML file, if it has one.
    """
    package = pathlib.Path(efficientnetv2.__file__).resolve().parent
    found = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in _NOT_OF_RUNS
    }
    if dataset in declarative.names("datasets"):
        name = f"{dataset}.yaml"
        found[f"datasets/{name}"] = (
            declarative.declarative_dir("datasets") / name
        )
    return {
        name: hashlib.sha256(found[name].read_bytes()).hexdigest()
        for name in sorted(found)
    }


def machine() -> dict:
    """Returns {'cpu': model, 'cores': number} of this machine."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        model = line.partition(":")[2].strip()
    return {"cpu": model, "cores": os.cpu_count()}
