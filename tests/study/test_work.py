"""A study at work: real runs of a tiny model, shared, resumed, compared."""

import json
import os
import pathlib
import shutil
import signal
import threading

import pytest
import yaml

from efficientnetv2 import cli, commands, files, progressive
from efficientnetv2.recovery import Interrupted
from efficientnetv2.study import analysis, definition, records, work
from efficientnetv2.study.records import StudyError
from tests.conftest import TINY

pytestmark = pytest.mark.slow

CONTENT = {
    "title": "Sizes that grow",
    "dataset": "fashion_mnist",
    "overrides": f"{TINY},train.isize_rule=paper,train.stages=2,train.epochs=3,"
    "data.images_per_class=10,train.lr_warmup_epoch=0,eval.val_split=null,"
    "eval.split=minival,train.batch_parts=1,runtime.threads=1",
    "regularization": {"model.dropout_rate": 0.2},
    "budgets": [0.5, 1],
    "seeds": 2,
    "most_seeds": 3,
    "half_width": 1e-6,
    "base": "fixed",
    "arms": {
        "fixed": {"overrides": "train.progressive_image_size=false"},
        "growing": {"strength": 1},
    },
    "questions": [{"claim": "C.", "arm": "growing", "against": "fixed"}],
    "tune": {"strengths": [0, 2], "seeds": [10]},
}
# As if measured: images of 16 pixels take a third of the time of 24.
SECONDS = {name: {"16": 0.02, "24": 0.06} for name in CONTENT["arms"]}


@pytest.fixture
def study():
    return definition.parse_study("tiny", CONTENT)


def _work(study, output, lines=None, measured=True) -> work.Work:
    at_work = work.Work(
        study, output, log=([] if lines is None else lines).append
    )
    if measured:
        content = {"machine": records.machine(), "seconds": SECONDS}
        files.write_json(at_work.folder / records.TIMES, content)
    return at_work


def _fake_run(self, task, folder):
    """Stands for a training."""
    folder.mkdir(parents=True)
    top1 = 0.8 + task.seed / 100 + task.strength / 1000
    return {key: getattr(task, key) for key in records.KEYS} | {"top1": top1}


def test_a_study_from_measuring_to_the_report(tmp_path, monkeypatch):
    """By the command, with real runs."""
    monkeypatch.setattr(work, "_STEPS", 3)
    path = tmp_path / "tiny.yaml"
    content = CONTENT | {
        **{"seeds": 1, "most_seeds": 1, "budgets": [1]},
        "tune": {"strengths": [2], "seeds": [10]},
    }
    path.write_text(yaml.safe_dump(content))
    output = tmp_path / "studies"
    arguments = [f"--study={path}", f"--output_dir={output}"]
    command = commands.load_command("study")
    with pytest.raises(SystemExit) as ended:
        cli.start(command, "study", arguments)
    assert not ended.value.code
    folder = output / "tiny"
    times = json.loads((folder / records.TIMES).read_text())["seconds"]
    assert times["fixed"].keys() == {"16", "24"}
    assert all(0 < s < 10 for s in times["fixed"].values())
    tuning = json.loads((folder / records.TUNING).read_text())
    # The arm with a strength of its own is not tuned.
    assert tuning["chosen"] == {"fixed": {"1": 2.0}}
    found = analysis.load_results(folder)
    assert [row["arm"] for row in found.rows] == ["fixed", "growing"]
    assert [row["seed"] for row in found.rows] == [0, 0]
    growing = found.rows[1]
    assert 0 < growing["training_top1"] <= 1 and growing["clock_seconds"] > 0
    assert "## Sizes that grow" in (output / "REPORT.md").read_text()
    # Of the runs only their results are left.
    kept = {p.name for p in (folder / records.WORK).iterdir()}
    assert "growing-1-1-0.json" in kept and "growing-1-1-0" not in kept
    # The same run, alone and elsewhere, is the same to the last bit.
    again = work.Work(definition.load_study(str(path)), output).rerun(
        "growing", 0
    )
    assert again["cross_entropy"] == growing["cross_entropy"]


def test_arms_train_for_equally_long(study, tmp_path):
    at_work = _work(study, tmp_path)
    for budget in (0.5, 1):
        whole = at_work.config(work.Task("fixed", budget, 1, 0))
        growing = at_work.config(work.Task("growing", budget, 1, 0))
        # Two stages, of which the first costs a third: 2 / (1 + 1 / 3).
        assert whole.train.epochs == 3 * budget
        assert growing.train.epochs == pytest.approx(3 * budget * 1.5, rel=0.1)
        seconds = at_work.seconds("growing", growing)
        expected = at_work.seconds("fixed", whole)
        assert seconds == pytest.approx(expected, rel=0.15)
    content = definition.to_dict(study)
    content["arms"]["growing"]["equal"] = "epochs"
    at_work = _work(definition.parse_study("tiny", content), tmp_path)
    assert at_work.config(work.Task("growing", 1, 1, 0)).train.epochs == 3


def test_a_strength_for_several_arms_and_budgets(tmp_path, monkeypatch):
    """Tried once, at one budget."""
    monkeypatch.setattr(work.Work, "run", _fake_run)
    content = CONTENT | {
        "tune": CONTENT["tune"] | {"budget": 0.5},
        "arms": CONTENT["arms"] | {"growing": {"strength_of": "fixed"}},
    }
    at_work = _work(definition.parse_study("tiny", content), tmp_path)
    at_work.claim()
    at_work.tune()
    tuning = json.loads((at_work.folder / records.TUNING).read_text())
    assert tuning["chosen"] == {"fixed": {"0.5": 2.0}}
    assert len(tuning["tried"]) == 2
    tasks = at_work.tasks(1)
    assert len(tasks) == 4 and {task.strength for task in tasks} == {2.0}


def test_tuned_strengths_and_more_seeds(study, tmp_path, monkeypatch):
    monkeypatch.setattr(work.Work, "run", _fake_run)
    lines = []
    at_work = _work(study, tmp_path, lines)
    at_work.claim()
    at_work.tune()
    tuning = json.loads((at_work.folder / records.TUNING).read_text())
    assert tuning["chosen"] == {"fixed": {"0.5": 2.0, "1": 2.0}}
    at_work.train()
    rows = analysis.load_results(at_work.folder).rows
    # The spread of 0 needs no third seed.
    assert len(rows) == 8
    assert {(r["arm"], r["strength"]) for r in rows} == {
        ("fixed", 2.0),
        ("growing", 1),
    }
    assert lines[-2].startswith("fixed-1-2-1: top-1 81.20%. 7 of 8 runs. ")
    assert lines[-1].endswith("Study tiny: all 8 runs are done.")

    def noisy(self, task, folder):
        """Differs from seed to seed where the question asks."""
        row, asked = _fake_run(self, task, folder), task.budget == 1
        gain = 0.01 * task.seed * asked * (task.arm == "growing")
        return row | {"top1": row["top1"] + gain}

    monkeypatch.setattr(work.Work, "run", noisy)
    at_work = _work(study, tmp_path / "noisy")
    at_work.claim()
    at_work.tune()
    at_work.train()
    rows = analysis.load_results(at_work.folder).rows
    assert len(rows) == 10
    assert {(r["arm"], r["budget"]) for r in rows if r["seed"] == 2} == {
        ("growing", 1),
        ("fixed", 1),
    }
    # A copy of the study's results, without its runs, is as complete.
    shutil.rmtree(at_work.folder / records.WORK)
    monkeypatch.setattr(work.Work, "run", None)
    at_work.train()


def test_two_processes_share_the_runs(study, tmp_path, monkeypatch):
    """As threads, whose files are locked as those of processes are."""
    monkeypatch.setattr(work, "_WAIT", 0.05)
    # Names of temporary files differ by process.
    monkeypatch.setattr(os, "getpid", threading.get_ident)
    trained, both = [], threading.Barrier(2)

    def run(self, task, folder):
        if len(trained) < 2:
            trained.append(task)
            both.wait(10)  # each has a run of its own
        else:
            trained.append(task)
        return _fake_run(self, task, folder)

    monkeypatch.setattr(work.Work, "run", run)
    workers = [_work(study, tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=w.tune) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Each run once.
    assert len(trained) == len(set(trained)) == 4
    tuning = json.loads((workers[0].folder / records.TUNING).read_text())
    assert len(tuning["tried"]) == 4


def test_an_interrupted_run_resumes(study, tmp_path, monkeypatch):
    at_work = _work(study, tmp_path)
    task = work.Task("growing", 1, 1, 0)
    whole = at_work.run(task, pathlib.Path(tmp_path / "whole"))
    saves = progressive.RunPlan.saves

    def stop(self, step):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
        return saves(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(progressive.RunPlan, "saves", stop)
        with pytest.raises(Interrupted, match="Rerun the same command"):
            at_work._take(task)
    assert not at_work.rows([task])
    row = at_work._take(task)
    assert row["cross_entropy"] == whole["cross_entropy"]
    assert at_work._take(task) is None
    assert at_work.rows([task]) == [row]


def test_other_code_or_options_are_refused(study, tmp_path, monkeypatch):
    hashes = {"efficientnetv2/config.py": "0", "efficientnetv2/train.py": "1"}
    monkeypatch.setattr(records, "code_hashes", lambda dataset: dict(hashes))
    _work(study, tmp_path).claim()
    _work(study, tmp_path).claim()
    content = definition.to_dict(study)
    content["arms"]["growing"]["overrides"] = "train.stages=3"
    content["title"] = "Another title"
    with pytest.raises(StudyError) as error:
        _work(definition.parse_study("tiny", content), tmp_path).claim()
    assert "arm growing" in str(error.value)
    assert "train.stages: 2 there, 3 here" in str(error.value)
    # An arm may come or go.
    content["arms"]["third"] = content["arms"].pop("growing")
    content["questions"] = []
    _work(definition.parse_study("tiny", content), tmp_path).claim()
    hashes["efficientnetv2/train.py"] = "2"
    with pytest.raises(StudyError) as error:
        _work(study, tmp_path).claim()
    assert "efficientnetv2/train.py" in str(error.value)
    assert "config.py" not in str(error.value)


def test_code_that_decides_no_number_is_free():
    names = records.code_hashes("fashion_mnist")
    assert "efficientnetv2/train.py" in names
    assert "datasets/fashion_mnist.yaml" in names
    assert not any("/study/" in name or "/serving/" in name for name in names)


@pytest.mark.parametrize(
    ("top1", "where"), [(0.842, "lies inside"), (0.95, "lies OUTSIDE")]
)
def test_one_arm_is_compared_with_what_is_published(
    study, tmp_path, monkeypatch, capsys, top1, where
):
    from efficientnetv2.commands import study as command

    at_work = _work(study, tmp_path)
    monkeypatch.setattr(work.Work, "run", _fake_run)
    at_work.claim()
    at_work.tune()
    at_work.train()
    monkeypatch.setattr(work.Work, "rerun", lambda *_: {"top1": top1})
    command._rerun(at_work, "growing", 7)
    assert where in capsys.readouterr().out
    with pytest.raises(definition.ConfigError, match="'growing'"):
        command._rerun(at_work, "grown", 7)
