"""Measured speed, and the driver of benchmarks/."""

import argparse
import importlib.util
import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest

from efficientnetv2 import cli, commands, speed
from efficientnetv2 import config as config_lib
from efficientnetv2.commands import study
from efficientnetv2.errors import UserError
from efficientnetv2.models import structure
from tests.conftest import run_program

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def driver():
    """benchmarks/run.py."""
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run"]


@pytest.mark.slow
def test_a_stage_is_measured(tiny_config, source, small_data):
    config = tiny_config("train.stages=2,data.augname=null")
    result = speed.measure_stage(config, 1, steps=2)
    stage = config_lib.run_plan(config).stages[1]
    assert result["image_size"] == 24 and result["batch_size"] == 32
    assert result["steps"] == stage.last_step - stage.first_step
    for key in ("pipeline", "step", "both"):
        assert result[key] > 0
    assert 0 < result["waiting_share"] < 1
    cost = structure.count_model(config.model.to_dict(), 24)
    assert result["gflops"] == pytest.approx(
        6e-9 * cost.multiply_adds * result["step"]
    )
    # TensorFlow alone takes more, and no test takes 64 GiB.
    assert 2**27 < result["peak_memory"] < 2**36


@pytest.mark.slow
def test_latency_is_measured(tiny_config):
    results = speed.measure_latency(tiny_config(), calls=3)
    assert [(r["form"], r["batch_size"]) for r in results] == [
        (form, size)
        for form in ("Keras", "SavedModel")
        for size in speed.BATCH_SIZES
    ]
    for result in results:
        assert 0 < result["p50"] <= result["p90"] <= result["p99"]


def test_a_measurement_answers_with_json(tiny_config, monkeypatch):
    text = config_lib.to_yaml(tiny_config())
    answer = json.loads(json.dumps(speed._answer("machine", [], text)))
    assert answer["result"]["matmul_gflops"] > 0
    assert answer["result"]["cpu_count"] >= 1

    def fail(config, index, steps):
        raise UserError(f"{config.data.ds_name} {index} {steps}")

    monkeypatch.setitem(speed._MEASUREMENTS, "stage", fail)
    answer = speed._answer("stage", ["3", "4"], text)
    assert answer == {"error": "fashion_mnist 3 4"}


@pytest.mark.slow
def test_measurements_run_apart(tiny_config):
    machine = speed.apart("machine", tiny_config())
    assert machine["matmul_gflops"] > 0
    with pytest.raises(UserError, match="Measuring nothing failed"):
        speed.apart("nothing", tiny_config())


def test_the_report_shows_what_was_measured():
    stage = dict(image_size=32, batch_size=128, steps=100, peak_memory=2**30)
    stage |= dict(pipeline=5000.0, step=1280.0, both=1000.0)
    stage |= dict(waiting_share=0.02, gflops=21.0)
    # A third of the images at a third of the speed: as much time.
    stages = [stage, {**stage, "steps": 50, "both": 500, "waiting_share": 0.1}]
    latency = [
        {"form": "Keras", "batch_size": 8, "p50": 1.5, "p90": 2.0, "p99": 12.25}
    ]
    share = speed.waiting_share(stages)
    assert share == pytest.approx(0.06)
    machine = {"matmul_gflops": 84.0, "cpu_count": 2, "devices": ["CPU"]}
    text = study.format_speed(
        {"model_name": "efficientnetv2-b0", "machine": machine}
        | {"stages": stages, "waiting_share": share, "latency": latency}
        | {"first_step_seconds": 9.87}
    )
    table = text.splitlines()
    assert table[3].split()[:3] == ["stage", "image", "batch"]
    assert table[5].split() == (
        "1 32 128 5,000 1,280 1,000 2.0% 21.0 25% 1,024".split()
    )
    assert max(map(len, table)) <= 80
    assert "6.0%" in text and "9.9 s" in text
    assert table[-1].split() == ["Keras", "8", "1.50", "2.00", "12.25"]


def test_the_time_to_a_line():
    program = "import time; print('a'); time.sleep(0.3); print('b c')"
    program += "; time.sleep(60)"
    command = [sys.executable, "-u", "-c", program]
    assert 0.3 < speed.seconds_to_line(command, " c") < 30
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(UserError, match="exit code 1: no such thing"):
        speed.seconds_to_line(command, "b")


@pytest.mark.slow
def test_mistakes_end_with_a_message():
    for arguments, word in (
        (["--model_name=efficientnetv2-z"], "efficientnetv2-"),
        (["--steps=0"], "steps"),
        (["--hparam_str=train.stage=3"], "train.stages"),
        (["x"], "'x'"),
    ):
        result = run_program("benchmark", *arguments, module="efficientnetv2")
        assert result.returncode in (1, 2)
        assert word in result.stderr and "Traceback" not in result.stderr


def _script(driver, label, value, **options):
    return driver.Script(label, ("python", label, str(value)), **options)


def test_scripts_run_alternately_and_medians_count(driver):
    values = {"ours": [300, 100, 200], "slow": [50, 40, 100], "none": [None]}
    order = []

    def run(command):
        order.append(command[1])
        value = values[command[1]].pop(0)
        if value is None:
            return {"skipped": "There is no peer."}
        return {"value": value, "versions": {"peer": "1.0"}}

    comparison = driver.Comparison(
        "step",
        "Training step",
        "images/s",
        [
            _script(driver, "ours", 1),
            _script(driver, "slow", 2, bar=4.5),
            _script(driver, "none", 3, bar=1.0),
        ],
    )
    lines = []
    result = driver.run_comparison(comparison, 3, lines.append, run)
    assert order == ["ours", "slow", "none"] + ["ours", "slow"] * 2
    ours, slow, none = result["rows"]
    assert ours["median"] == 200 and ours["ratio"] is None
    assert slow["median"] == 50 and slow["ratio"] == 4.0
    assert slow["reaches"] is False
    assert none["skipped"] == "There is no peer."
    head = {"command": "python benchmarks/run.py", "machine": {"cores": 2}}
    text = driver.markdown({**head, "repeats": 3, "comparisons": [result]})
    assert "| ours (peer 1.0) | 200 | 300, 100, 200 |  |  |" in text
    assert "| 4.00 | at least 4.5: no |" in text
    assert "There is no peer." in text and "python slow 2" in text


def test_of_times_the_lower_is_better(driver):
    values = {"ours": 4.0, "fit": 10.0}
    comparison = driver.Comparison(
        "first_step",
        "First step",
        "s",
        [_script(driver, "ours", 1), _script(driver, "fit", 2, bar=0.5)],
        lower_is_better=True,
        bar=3.0,
    )
    result = driver.run_comparison(
        comparison,
        1,
        lambda _: None,
        lambda command: {"value": values[command[1]], "versions": {}},
    )
    ours, fit = result["rows"]
    assert fit["ratio"] == 0.4 and fit["reaches"] is True
    assert ours["reaches"] is False


def test_every_subject_is_compared_and_answers_are_read(driver, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    subjects = {}
    monkeypatch.setattr("timing.main", lambda found: subjects.update(
        {function.__name__: function for function in found}
    ))  # fmt: skip
    for name in ("ours", "peers"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    options = argparse.Namespace(
        torch_python=None, seconds=1.0, accelerator=False, images=100
    )
    known = driver.comparisons(options)
    options.accelerator = True
    known += driver.comparisons(options)
    used = {script.command[2] for each in known for script in each.scripts}
    assert used == subjects.keys()
    program = "print('words'); print('{\"value\": 2.5, \"versions\": {}}')"
    answer = driver.run_script([sys.executable, "-c", program])
    assert answer == {"value": 2.5, "versions": {}}
    with pytest.raises(SystemExit, match="went wrong"):
        driver.run_script([sys.executable, "-c", "raise OSError('went wrong')"])


@pytest.mark.slow
def test_one_command_renews_the_results(tmp_path):
    out = tmp_path / "benchmarks"
    subprocess.run(
        [
            *(sys.executable, "benchmarks/run.py", f"--out={out}"),
            *("--only=jpeg", "--repeats=1", "--seconds=0.01"),
        ],
        check=True,
        capture_output=True,
        cwd=FOLDER.parent,
    )
    content = json.loads(out.with_suffix(".json").read_text())
    [comparison] = content["comparisons"]
    crop, whole = comparison["rows"]
    assert crop["median"] > 0 and whole["ratio"] > 0
    text = out.with_suffix(".md").read_text()
    assert "## Photographs of 500 x 375 in JPEG to 224 px" in text
    assert "python benchmarks/ours.py jpeg --size=224 --on_device" in text


def test_the_inference_of_a_finished_run(folder_run, tmp_path):
    command = commands.load_command("benchmark")
    shutil.copytree(folder_run, tmp_path / "run")
    arguments = [f"--model_dir={tmp_path / 'run'}", "--inference_batch_size=4"]
    command.run(*cli.parse(command, arguments))
    result = json.loads((tmp_path / "run" / speed.INFERENCE).read_text())
    assert result["images_per_second"] > 0
    assert result["batch_size"] == 4 and result["image_size"] == 24


def test_the_clock_leaves_the_start_out(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import timing

    calls = []
    rate = timing.images_per_second(lambda: calls.append(1), 10, 0.05)
    measured = len(calls) - timing.WARM_UP
    assert measured > 0
    assert 0 < rate <= measured * 10 / 0.05


def test_fit_is_measured_after_its_first_steps(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import keras
    import peers
    import tensorflow as tf
    import timing

    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", "mse", jit_compile=False)
    batch = tf.zeros([2, 4, 4, 1]), tf.zeros([2, 3])
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    assert peers.fit_images_per_second(model, dataset, 2, 0.05) > 0
    assert int(model.optimizer.iterations) > timing.WARM_UP
