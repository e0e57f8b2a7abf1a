"""The command `efficientnetv2`, its help, its flags and its completion."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from efficientnetv2 import cli, commands, declarative
from efficientnetv2 import config as config_lib
from efficientnetv2.commands import run
from efficientnetv2.errors import UserError
from tests.conftest import raises, run_code, run_program


def _run(*arguments, module="efficientnetv2"):
    return run_program(*arguments, module=module)


@pytest.mark.parametrize("name", commands.NAMES)
def test_help_fits_a_screen(name):
    text = cli.help_text(f"efficientnetv2 {name}", commands.load_command(name))
    lines = text.splitlines()
    assert len(lines) <= 24, text
    assert max(map(len, lines)) <= 80, text
    assert re.search(rf"^ +(eval .)?efficientnetv2 {name}", text, re.M) or (
        name == "completion"
    )
    full = cli.help_text("x", commands.load_command(name), full=True)
    for flag in cli.own_flags(commands.load_command(name)):
        assert f"--{flag}" in full or f"--[no]{flag}" in full
        rare = flag in commands.load_command(name).RARE
        assert rare != bool(re.search(rf"\b{flag}\b", text)), flag


def test_help_waits_for_nothing():
    """No command imports TensorFlow, Keras or JAX before it has to."""
    run_code("""
import sys
from efficientnetv2 import cli, commands
for name in commands.NAMES:
    cli.help_text(name, commands.load_command(name))
slow = {"tensorflow", "keras", "jax", "matplotlib", "scipy"} & set(sys.modules)
assert not slow, slow
""")
    result = _run("train", "--help")
    assert result.returncode == 0 and "--model_dir" in result.stdout


def test_the_overview_and_unknown_commands():
    result = _run("--help")
    assert result.returncode == 0
    for name in commands.NAMES:
        assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE)
    assert _run().stdout == result.stdout
    assert _run("--version").stdout.strip()
    result = _run("trian", "--dataset=x")
    assert result.returncode == 2 and "Did you mean 'train'" in result.stderr


def _config(*arguments):
    given, words = cli.parse(run.train, arguments)
    assert not words
    return run.load_config(given)


def test_short_flags_are_options():
    config = _config(
        "--dataset=fashion_mnist", "--epochs=2.5", "--batch_size=64",
        "--lr=0.01", "--image_size=60", "--seed=3",
    )  # fmt: skip
    assert config.train.epochs == 2.5 and config.train.batch_size == 64
    assert config.train.lr_base == 0.01 and config.train.seed == 3
    assert config.train.isize == config.eval.isize == 60
    # The recipe begins at 28 of 56 pixels.
    assert config.data.ibase == 30
    config = _config("--image_size=60", "--hparam_str=data.ibase=40")
    assert config.data.ibase == 40
    # A flag counts more than --hparam_str.
    config = _config("--epochs=2", "--hparam_str=train.epochs=3")
    assert config.train.epochs == 2
    config = _config("--noadaptive_regularization", "--adaptive_mixing")
    assert config.train.adaptive_mixing
    assert not config.train.adaptive_dropout
    with pytest.raises(config_lib.ConfigError, match="at least 1"):
        _config("--batch_size=0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--strategy=gpus"], ["'gpu'"]),
        (["--mode=train_and_evl"], ["'train_and_eval'"]),
        (["--epoch=3"], ["--epochs"]),
        (["--epochs=three"], ["--epochs=three", "a number"]),
        (["--seed=1.5"], ["--seed=1.5", "an integer"]),
        (["--adaptive_mixing=perhaps"], ["--adaptive_mixing=perhaps"]),
        (["--dataset"], ["dataset"]),
    ],
)
def test_wrong_flags_are_told(arguments, words):
    with raises(UserError, *words):
        cli.parse(run.train, arguments)


@pytest.mark.slow
def test_all_entries_are_the_same_commands():
    for name in ("predict", "data", "models"):
        result = _run("--help", module=f"efficientnetv2.{name}")
        assert result.stdout == _run(name, "--help").stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tra", ["train"]),
        ("train --epo", ["--epochs="]),
        ("train --noadaptive_m", ["--noadaptive_mixing"]),
        ("train --recipe = fash", ["fashion_mnist", "fashion_mnist_best"]),
        ("train --strategy = ", list(cli.SHARED["strategy"].choices)),
        ("study --study reg", ["regularization"]),
        ("eval --strategy = g", ["gpu"]),
    ],
)
def test_completion_in_bash(line, expected):
    """Words are those into which Bash splits a line, also at '='."""
    words = ["efficientnetv2", *line.split(" ")]
    program = commands.complete_in_bash() + (
        "\ncompopt() { :; }\n"
        f"COMP_WORDS=({' '.join(repr(word) for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\n"
        '_efficientnetv2\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    result = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True
    )
    assert sorted(result.stdout.split()) == sorted(expected), result.stderr


def test_completion_scripts():
    assert "bashcompinit" in _run("completion", "zsh").stdout
    text = _run("completion", "fish").stdout
    assert "-l model_name -x -a '" + declarative.names("models")[0] in text
    if shutil.which("fish"):
        subprocess.run(["fish", "-n"], input=text, text=True, check=True)
    result = _run("completion", "tcsh")
    assert result.returncode == 2 and "bash, zsh, fish" in result.stderr


@pytest.mark.slow
def test_runs_are_listed_and_compared(tmp_path):
    folder = pathlib.Path("results/fashion_mnist")
    metrics = json.loads((folder / "seed1/metrics.json").read_text())
    top1, minutes = metrics["test"]["top1"], metrics["train_seconds"] / 60
    result = _run("runs", str(folder))
    lines = result.stdout.splitlines()
    assert re.split(r"  +", lines[1]) == [
        *("seed1", "fashion_mnist", "efficientnetv2-pico", f"{top1:.2%}"),
        *("eval", f"{minutes:.1f}", "finished"),
    ]
    assert len(lines) == 4
    result = _run("runs", str(folder), "--csv")
    assert result.stdout.splitlines()[1].startswith(
        f"seed1,fashion_mnist,efficientnetv2-pico,{top1},eval,{minutes:.1f}"
    )
    result = _run(
        "runs", str(folder / "seed1"), str(folder / "trial_18_epochs"),
        f"--plot={tmp_path / 'curves.png'}",
    )  # fmt: skip
    assert re.search(r"^train.seed +1 +0$", result.stdout, re.MULTILINE)
    assert re.search(
        rf"^top-1 +{top1:.2%} +93.20%$", result.stdout, re.MULTILINE
    )
    assert re.search(r"^train.epochs +19.0 +18.0$", result.stdout, re.MULTILINE)
    assert "train.optimizer" not in result.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for arguments in (["none"], [str(tmp_path)], ["results", str(tmp_path)]):
        result = _run("runs", *arguments)
        assert result.returncode == 2 and "There " in result.stderr


def test_the_state_of_runs(tmp_path):
    from efficientnetv2 import files, overview

    for name, metrics in (
        ("a", '{"evaluations": [{"top1": 0.5}], "best": {"top1": 0.5}}'),
        ("b", "{}"),
        ("c", '{"finished": true, "test": {"top1": 1.0}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            "eval: {val_split: minival}\n"
        )
        (tmp_path / name / "metrics.json").write_text(metrics)
    with files.locked(tmp_path / "b/.lock"):
        states = {r.path.name: r.state for r in overview.find(tmp_path)}
    assert states == {"a": "stopped", "b": "running", "c": "finished"}
    assert overview.read(tmp_path / "b").state == "no result"
    a = overview.read(tmp_path / "a")
    assert (a.top1, a.split, a.minutes) == (0.5, "minival", None)


def _call(name, *arguments):
    """Runs a command in this process."""
    command = commands.load_command(name)
    return command.run(*cli.parse(command, arguments))


def test_what_an_export_says(photos, tmp_path, monkeypatch, capsys):
    """How many images there are, where, and how to train on them."""
    monkeypatch.chdir(tmp_path)
    to = ["--format=tfrecord", "--output_dir=shards"]
    _call("data", "export", f"--dataset={photos}", *to)
    said, _, advice = capsys.readouterr().out.partition("Train on them:\n")
    counts = re.search(r"(\d+) images \((.*)\) in shards", said)
    parts = re.findall(r"\d+", counts[2])
    assert int(counts[1]) == sum(map(int, parts)) == 600
    command = shlex.split(advice.replace("\\\n", " "))
    assert "--dataset=shards/dataset.yaml" in command
    given, _ = cli.parse(run.train, command[command.index("train") + 1 :])
    config = run.load_config(given)
    assert config.data.num_classes == 10 and given.model_dir == "runs/shards"

    # The folder is that of the shards, not that of other data.
    _call("data", "--dataset=shards/dataset.yaml")
    text = capsys.readouterr().out
    assert re.search(r"^data +\d shards in shards$", text, re.MULTILINE)

    # A run does not go into the folder of its images.
    few = ["--images_per_class=1", "--output_dir=runs/few"]
    _call("data", "export", f"--dataset={photos}", *few)
    assert "--model_dir=runs/few_model" in capsys.readouterr().out


def test_an_unknown_dataset_beside_a_folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is a folder 'photos' here"):
        _config("--dataset=photo")
    with pytest.raises(UserError, match="Did you mean 'efficientnetv2-b0'"):
        _config("--model_name=b0")
    with pytest.raises(UserError, match="Did you mean 'preview'"):
        _call("data", "previw", "--dataset=fashion_mnist")
