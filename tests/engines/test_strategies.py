"""Several devices and several machines: the same numbers as on one."""

import functools
import json
import os
import socket
import time
import types

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2 import checkpoints, progressive
from efficientnetv2.data import mixing, pipeline
from efficientnetv2.engines import strategies
from tests.conftest import TINY, assert_same, examples, raises, start_program
from tests.engines.distributed_run import SAME

pytestmark = pytest.mark.slow


@examples(25)
@given(unit=st.integers(1, 6), parts=st.integers(1, 8))
def test_parts_of_a_batch_hold_both_of_each_pair(unit, parts):
    batch = 4 * unit * parts
    rows = [pipeline.rows_of_part(batch, k, parts) for k in range(parts)]
    assert sorted(np.concatenate(rows)) == list(range(batch))
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        whole, in_mixup = mixing.partners(batch, mixup, cutmix)
        for part in rows:
            local, local_mixup = mixing.partners(len(part), mixup, cutmix)
            np.testing.assert_array_equal(part[local], whole.numpy()[part])
            np.testing.assert_array_equal(local_mixup, in_mixup.numpy()[part])


@pytest.mark.parametrize("augname", ["randaug", None])
def test_parts_of_the_pipeline_make_the_batch(tiny_config, source, augname):
    config = tiny_config(
        f"data.augname={augname},data.mixup_alpha=1,data.cutmix_alpha=1,"
        "train.stages=2,train.epochs=0.002"
    )
    plan = progressive.plan_run(config, 200, 12)

    def batches(*part):
        dataset = pipeline.training_dataset(source, config, plan, part=part)
        return list(dataset.as_numpy_iterator())

    for number in range(2):
        rows = pipeline.rows_of_part(32, number, 2)
        for part, whole in zip(batches(number, 2), batches(0, 1), strict=True):
            for values, expected in zip(part, whole, strict=True):
                np.testing.assert_allclose(values, expected[rows], atol=1e-6)


@pytest.mark.parametrize("text", ["", '{"cluster": {}}'])
def test_a_wrong_tf_config(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    words = f"TF_CONFIG={text!r}", "must be like"
    with raises(strategies.StrategyError, *words):
        strategies.make_strategy("multi_worker")


def test_micro_batches_that_do_not_divide_a_part(tiny_config):
    strategy = types.SimpleNamespace(
        num_replicas_in_sync=2, cluster_resolver=None
    )
    config = tiny_config("train.batch_size=24,train.micro_batch_size=8")
    with pytest.raises(strategies.StrategyError, match="12 images"):
        strategies.check_replicas(strategy, config)
    config = tiny_config("train.batch_size=24,train.micro_batch_size=6")
    strategies.check_replicas(strategy, config)


def test_a_gpu_that_is_not_there():
    with pytest.raises(strategies.StrategyError, match="sees no GPU"):
        strategies.make_strategy("gpu")


@pytest.mark.parametrize("flags", ["avx512f avx512_vnni", None, "avx512_bf16"])
def test_bfloat16_products_need_a_processor_that_has_them(
    tiny_config, monkeypatch, tmp_path, flags
):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(strategies, "_CPUINFO", cpuinfo)
    config = tiny_config("runtime.mixed_precision=bfloat16_products")
    try:
        if flags == "avx512_bf16":
            strategies.set_up(config)
        else:
            with raises(strategies.StrategyError, "has no bfloat16 products"):
                strategies.set_up(config)
        # What another machine has trained is evaluated in float32.
        strategies.set_up(config, training=False)
        assert keras.config.dtype_policy().name == "float32"
    finally:
        strategies.set_up(tiny_config())


def _start(*arguments, **environment):
    return start_program(
        *arguments,
        module="tests.engines.distributed_run",
        env={**os.environ, **environment},
    )


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _logs(folder, worker=0):
    return json.loads((folder / f"logs_{worker}.json").read_text())


@pytest.fixture(scope="module")
def on_one(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    process = _start(photos, str(folder), "cpu")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return folder


def _assert_same_logs(logs, expected):
    assert len(logs) == len(expected) == 12
    for values, right in zip(logs, expected, strict=True):
        right = {name: pytest.approx(v, abs=1e-4) for name, v in right.items()}
        assert values == right | {"top5": values["top5"]}


def test_two_devices(photos, on_one, tmp_path):
    # More than the eight images that each device has of a batch.
    micro = "train.micro_batch_size=16"
    process = _start(photos, str(tmp_path), "mirrored", micro)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    _assert_same_logs(_logs(tmp_path), _logs(on_one))
    one, two = (
        checkpoints.load_latest(folder).arrays for folder in (on_one, tmp_path)
    )
    assert_same(two, one, 1e-3)


def _cluster():
    """Returns the environments of two workers."""
    workers = [f"localhost:{port}" for port in _free_ports(2)]
    tasks = ({"type": "worker", "index": index} for index in range(2))
    clusters = ({"cluster": {"worker": workers}, "task": t} for t in tasks)
    return [{"TF_CONFIG": json.dumps(each)} for each in clusters]


def test_two_workers(photos, on_one, tmp_path):
    processes = [
        _start(photos, str(tmp_path), "multi_worker", **environment)
        for environment in _cluster()
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    for worker in range(2):
        _assert_same_logs(_logs(tmp_path, worker), _logs(on_one))
    assert checkpoints.load_latest(tmp_path).meta["step"] == 12


def test_a_killed_worker_that_starts_again(photos, tmp_path):
    options = "train.epochs=40,checkpoint.every_steps=10,eval.val_split=null"
    first, second = (
        functools.partial(
            start_program,
            *(f"--dataset={photos}", "--recipe=fashion_mnist", "--mode=train"),
            *(
                f"--hparam_str={TINY},{SAME},{options}",
                f"--model_dir={tmp_path}",
            ),
            env={**os.environ, **environment},
        )
        for environment in _cluster()
    )
    processes = [first(), second()]
    while not checkpoints.list_steps(tmp_path):
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.1)
    processes[1].kill()
    processes[1].communicate()
    processes[1] = second()
    outputs = [process.communicate()[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "Restarting" in outputs[0] and "Resuming at step" in outputs[0]
    assert checkpoints.load_latest(tmp_path).meta["step"] == 480
