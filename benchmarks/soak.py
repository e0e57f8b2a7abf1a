"""Kills a run on Fashion-MNIST again and again, and compares its weights.

    make soak
    python benchmarks/soak.py --kills=100 --json=results/soak.json

One run is left alone; another, of the same configuration, is killed by SIGKILL
at random moments and started again by the same command until it is finished.
All arrays of both last checkpoints must be equal, bit for bit.
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np

from efficientnetv2 import checkpoints, files, runs

OVERRIDES = "train.epochs={epochs},checkpoint.every_steps=10"


def command(model_dir: pathlib.Path, epochs: float) -> list[str]:
    """Returns what a user would type."""
    return [
        sys.executable,
        "-m",
        "efficientnetv2.main",
        "--dataset=fashion_mnist",
        "--mode=train",
        f"--model_dir={model_dir}",
        f"--hparam_str={OVERRIDES.format(epochs=epochs)}",
    ]


def run_for(
    arguments: list[str], log: pathlib.Path, seconds: float | None
) -> bool:
    """Runs a command and kills it after some seconds.

    Returns:
        Whether it ended by itself.

    Raises:
        RuntimeError: if it failed.
    """
    with open(log, "ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
    if status:
        raise RuntimeError(f"exit status {status}; see {log}")
    return True


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Returns the names of arrays that are not equal, bit for bit."""
    one, two = (
        checkpoints.load_latest(each).arrays for each in (first, second)
    )
    return sorted(
        name
        for name in one.keys() | two.keys()
        if name not in one
        or name not in two
        or one[name].tobytes() != two[name].tobytes()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--most_seconds", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/soak")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    whole = folder / "whole"
    run_for(command(whole, options.epochs), folder / "whole.log", None)
    chance, kills, lives, different = random.Random(options.seed), 0, 0, []
    while kills < options.kills:
        model_dir = folder / f"killed{len(different)}"
        finished = False
        while not finished:
            seconds = chance.uniform(0, options.most_seconds)
            finished = run_for(
                command(model_dir, options.epochs),
                folder / "killed.log",
                seconds if kills < options.kills else None,
            )
            lives += 1
            kills += not finished
        different.append(differences(whole, model_dir))
        print(
            f"{kills} kills, {len(different)} runs finished; arrays that "
            f"differ: {different[-1] or 'none'}",
            flush=True,
        )
    arrays = checkpoints.load_latest(whole).arrays
    content = {
        "kills": kills,
        "runs": len(different),
        "processes": lives,
        "arrays": len(arrays),
        "numbers": int(sum(np.size(array) for array in arrays.values())),
        "different": sum(map(len, different)),
        "minutes": (time.monotonic() - start) / 60,
        "command": " ".join(command(pathlib.Path("DIR"), options.epochs)[1:]),
        "environment": runs.environment(),
    }
    print(json.dumps(content, indent=1))
    if options.json:
        files.write_json(options.json, content)
    return 1 if any(different) else 0


if __name__ == "__main__":
    sys.exit(main())
