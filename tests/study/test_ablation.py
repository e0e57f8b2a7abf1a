"""The driver of a study: order, resuming, refusing, and real processes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from efficientnetv2 import files
from efficientnetv2.config import ConfigError
from efficientnetv2.study import ablation, definition, records
from efficientnetv2.study.ablation import Driver, plan_tasks
from efficientnetv2.study.records import Folder, StudyError

pytestmark = pytest.mark.slow


def _driver(study, tmp_path, runs, lines=None):
    return Driver(
        study,
        definition.resolve(study),
        Folder(tmp_path / study.name),
        None,
        runs,
        (lines if lines is not None else []).append,
    )


def test_seeds_vary_slowest(small):
    tasks = plan_tasks(small, 3)
    assert [(t.seed, t.arm) for t in tasks] == [
        (seed, arm) for seed in range(3) for arm in ("little", "much")
    ]
    assert [t.number for t in tasks] == [1, 2, 3, 4, 5, 6]


def test_shards_are_a_partition(small):
    everything = plan_tasks(small, 5)
    parts = [plan_tasks(small, 5, shard=(k, 3)) for k in range(3)]
    assert sorted(sum(parts, []), key=lambda t: t.number) == everything
    assert [t.number for t in parts[1]] == [2, 5, 8]
    of_arm = plan_tasks(small, 2, ["much"])
    assert {t.arm for t in of_arm} == {"much"} and len(of_arm) == 2
    with pytest.raises(ConfigError, match="'much'"):
        plan_tasks(small, 2, ["mush"])
    assert ablation.parse_shard("2/4") == (1, 4)
    for text in ("0/4", "5/4", "1", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="PART/PARTS"):
            ablation.parse_shard(text)


def test_a_study_runs_once(small, tmp_path, runs, code):
    lines = []
    driver = _driver(small, tmp_path, runs, lines)
    assert driver.execute(plan_tasks(small, 2), 2)
    assert len(runs.commands) == 4
    assert runs.commands[1][1:] == [
        "-m",
        "efficientnetv2.main",
        "--mode=train_and_test",
        "--dataset=fashion_mnist",
        "--recipe=fashion_mnist",
        "--hparam_str=train.epochs=2,train.isize=24,data.ibase=16,"
        "model.dropout_rate=0.5",
        "--seed=0",
        f"--model_dir={tmp_path / 'small' / 'runs' / 'much' / 'seed0'}",
    ]
    assert any("run 4 of 4: much, seed 1: top-1 81.00%" in s for s in lines)
    result = records.read_json(driver.folder.result("much", 1))
    assert result["times"]["train_seconds"] == 91.0
    assert result["config"]["train"]["seed"] == 1
    assert result["config"]["model"]["dropout_rate"] == 0.5
    assert result["code"] == code and result["inference"] is None
    assert result["model"]["multiply_adds"] > 1e6
    study, seeds = records.definition_of(driver.folder)
    assert (study, seeds) == (small, 2)
    # Again, nothing is left to do; a third seed adds two runs.
    assert driver.execute(plan_tasks(small, 2), 2)
    assert len(runs.commands) == 4
    assert driver.execute(plan_tasks(small, 3), 3)
    assert [c[-2] for c in runs.commands[4:]] == ["--seed=2"] * 2


def test_a_part_says_what_is_missing(small, tmp_path, runs, code):
    lines = []
    driver = _driver(small, tmp_path, runs, lines)
    assert not driver.execute(plan_tasks(small, 2, shard=(0, 4)), 2)
    assert "3 of 4 runs of the study are still missing." in lines


def test_an_ended_study_goes_on(small, tmp_path, runs, code):
    def fail(command):
        if len(runs.commands) == 3:
            raise StudyError("the third run fails")

    runs.before = fail
    driver = _driver(small, tmp_path, runs)
    with pytest.raises(StudyError, match="third"):
        driver.execute(plan_tasks(small, 2), 2)
    assert len(records.read_results(driver.folder)) == 2
    assert driver.execute(plan_tasks(small, 2), 2)
    # The failed run was begun again, the finished ones were not.
    assert len(runs.commands) == 5
    assert runs.commands[2] == runs.commands[3]


def test_other_code_is_refused(small, tmp_path, runs, code):
    driver = _driver(small, tmp_path, runs)
    driver.execute(plan_tasks(small, 1), 1)
    code["efficientnetv2/config.py"] = "2" * 64
    code["efficientnetv2/new.py"] = "3" * 64
    with pytest.raises(StudyError) as error:
        driver.execute(plan_tasks(small, 2), 2)
    message = str(error.value)
    assert "efficientnetv2/config.py" in message
    assert "efficientnetv2/new.py" in message
    assert "efficientnetv2/main.py" not in message
    assert len(runs.commands) == 2


def test_a_begun_run_of_other_code_is_refused(small, tmp_path, runs, code):
    def fail(command):
        raise StudyError("ended")

    runs.before = fail
    driver = _driver(small, tmp_path, runs)
    with pytest.raises(StudyError, match="ended"):
        driver.execute(plan_tasks(small, 1), 1)
    code["efficientnetv2/main.py"] = "2" * 64
    with pytest.raises(StudyError, match="efficientnetv2/main.py"):
        driver.execute(plan_tasks(small, 1), 1)


def test_code_that_changes_under_a_run_is_refused(small, tmp_path, runs, code):
    def edit(command):
        code["efficientnetv2/main.py"] = "2" * 64

    runs.before = edit
    driver = _driver(small, tmp_path, runs)
    with pytest.raises(StudyError, match="changed while.*main.py"):
        driver.execute(plan_tasks(small, 1), 1)
    assert not records.read_results(driver.folder)


def test_another_config_is_refused(small, tmp_path, runs, code):
    _driver(small, tmp_path, runs).execute(plan_tasks(small, 1), 1)
    content = definition.to_dict(small)
    content["arms"]["much"]["overrides"] = "model.dropout_rate=0.4"
    driver = _driver(definition.parse("small", content), tmp_path, runs)
    with pytest.raises(StudyError) as error:
        driver.execute(plan_tasks(small, 1), 1)
    assert "arm much, seed 0" in str(error.value)
    assert "model.dropout_rate: 0.5 there, 0.4 here" in str(error.value)
    # Another title is no other configuration.
    content = definition.to_dict(small) | {"title": "Another title"}
    driver = _driver(definition.parse("small", content), tmp_path, runs)
    assert driver.execute(plan_tasks(small, 1), 1)
    # A result of an arm that is no longer there.
    content["arms"]["moch"] = content["arms"].pop("much")
    content |= {"curves": ["moch"], "hypotheses": []}
    driver = _driver(definition.parse("small", content), tmp_path, runs)
    with pytest.raises(StudyError, match="no arm of the study.*'moch'"):
        driver.execute(plan_tasks(small, 1), 1)


def test_a_locked_run_is_passed_over(small, tmp_path, runs, code):
    lines = []
    driver = _driver(small, tmp_path, runs, lines)
    path = driver.folder.run("little", 0) / ablation.LOCK
    with files.locked(path) as lock:
        assert lock.holder is None
        assert not driver.execute(plan_tasks(small, 1), 1)
    assert any(f"process {os.getpid()} on" in line for line in lines)
    assert list(records.read_results(driver.folder)) == [("much", 0)]
    assert driver.execute(plan_tasks(small, 1), 1)


def test_a_child_keeps_the_lock_of_a_killed_driver(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path) as lock:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"],
            stdin=subprocess.PIPE,
            pass_fds=[lock.descriptor],
        )
    with files.locked(path) as lock:
        assert lock.holder == f"process {os.getpid()} on {socket.gethostname()}"
    child.communicate(b"\n")
    with files.locked(path) as lock:
        assert lock.holder is None


def test_a_signal_reaches_the_child(tmp_path):
    program = (
        "import signal, sys, time\n"
        "def stop(*_): print('told', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    children = ablation.Children()
    output = tmp_path / "output.log"

    def tell():
        while not output.exists() or "ready" not in output.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    before = signal.getsignal(signal.SIGTERM)
    with children.receiving(), files.locked(tmp_path / "lock") as lock:
        thread.start()
        with pytest.raises(ablation.Stopped, match="SIGTERM") as error:
            children.run(
                [sys.executable, "-S", "-c", program], output, lock.descriptor
            )
    thread.join()
    assert error.value.exit_code == 143
    assert output.read_text() == "ready\ntold\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failing_child_shows_its_last_lines(tmp_path):
    program = "import sys; print('why it failed'); sys.exit(3)"
    with files.locked(tmp_path / "lock") as lock:
        with pytest.raises(StudyError, match="(?s)status 3.*why it failed"):
            ablation.Children().run(
                [sys.executable, "-S", "-c", program],
                tmp_path / "log",
                lock.descriptor,
            )


def test_the_code_that_counts():
    names = set(records.code_hashes("fashion_mnist"))
    assert "datasets/fashion_mnist.yaml" in names
    assert "efficientnetv2/train.py" in names
    assert not [n for n in names if "/study/" in n or "/serving/" in n]
    assert all(name.endswith((".py", ".yaml")) for name in names)


TINY_STUDY = """
title: Tiny
dataset: {photos}
overrides: >-
  model.blocks=r1_k3_s1_e1_i8_o8_c1|r1_k3_s2_e2_i8_o16_c1,
  model.width_coefficient=1.0, model.feature_size=16, train.isize=16,
  data.ibase=8, eval.isize=16, train.batch_size=8, train.batch_parts=1,
  train.epochs=2, train.stages=2, data.augname=null,
  eval.batch_size=8, model.model_name=efficientnetv2-pico
base: ascending
inference_batch_size: 2
arms:
  ascending: {{title: ascending}}
  random: {{title: random, overrides: train.stage_order=random}}
"""


def _write_photos(folder: pathlib.Path) -> None:
    for split in ("train", "val"):
        for number, name in enumerate(("dark", "light")):
            path = folder / split / name
            path.mkdir(parents=True)
            for k in range(10):
                colour = 200 * number + k
                Image.new("L", (12, 12), colour).save(path / f"{k}.png")


def test_a_tiny_study_from_end_to_end(tmp_path):
    """Two runs in processes of their own, then the report."""
    _write_photos(tmp_path / "photos")
    study = tmp_path / "tiny.yaml"
    study.write_text(TINY_STUDY.format(photos=tmp_path / "photos"))
    command = [
        sys.executable,
        "-m",
        "efficientnetv2.study.ablation",
        f"--study={study}",
        "--seeds=1",
        f"--output_dir={tmp_path / 'out'}",
    ]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "run 2 of 2: random, seed 0: top-1" in first.stdout
    folder = Folder(tmp_path / "out" / "tiny")
    results = records.read_results(folder)
    assert set(results) == {("ascending", 0), ("random", 0)}
    for result in results.values():
        assert result["inference"]["images_per_second"] > 0
        assert result["times"]["train_seconds"] > 0
        assert len(result["curve"]) == 2
        json.dumps(result, allow_nan=False)
    report = (tmp_path / "out" / "REPORT.md").read_text()
    assert "ascending" in report and "one seed" in report
    assert (folder.path / "plots" / "accuracy_over_time.svg").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "0 of 2 to do" in again.stdout
    assert (tmp_path / "out" / "REPORT.md").read_text() == report


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--study", "regularization"]),
        (["--study=fussed"], ["'fused'"]),
        (["--study=fused", "--arms=fused_1"], ["'fused_"]),
        (["--study=fused", "--shard=9/4"], ["PART/PARTS"]),
        (["--report_only"], ["no results"]),
    ],
)
def test_mistakes_end_with_a_message(tmp_path, arguments, words):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "efficientnetv2.study.ablation",
            f"--output_dir={tmp_path / 'out'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "out").exists()
