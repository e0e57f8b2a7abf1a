"""Steps of an engine, on any backend, in this process or a child."""

import functools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np

METRICS = ("loss", "cross_entropy", "l2", "top1", "top5")
# Two image sizes, mixing, a ramp of weight decay, clipping, a moving average;
# nothing that the backends draw by themselves.
OVERRIDES = (
    "model.blocks=r1_k3_s2_e1_i8_o8_c1|r2_k3_s2_e2_i8_o16_se0.25,"
    "model.depth_coefficient=1,model.width_coefficient=1,"
    "model.feature_size=32,model.dropout_base=0,model.dropout_rate=0,"
    "train.isize=24,data.ibase=16,eval.isize=24,train.batch_size=32,"
    "train.stages=2,train.batch_parts=1,train.epochs=4,"
    "train.lr_warmup_epoch=0.5,train.weight_decay_inc=4,train.ema_decay=0.99,"
    "data.mixup_alpha=0.2,data.cutmix_alpha=0.2,train.gclip=0.5"
)


def make_engine(overrides: str = ""):
    """Returns an engine of the active backend, and its configuration."""
    from efficientnetv2 import config as config_lib
    from efficientnetv2 import engines, progressive

    text = ",".join(filter(None, (OVERRIDES, overrides)))
    config = config_lib.load("fashion_mnist", hparam_str=text)
    engines.set_up(config)
    return engines.create(config, progressive.plan_run(config, 200, 24))


def run(engine, start: dict | None, first: int, last: int) -> dict:
    """Makes steps.

    Args:
        engine: of `make_engine`.
        start: the state to begin with; None: the engine's.
        first, last: half-open.

    Returns:
        'metrics', float64 [steps, METRICS], and the states 'before' and
        'after'.
    """
    from efficientnetv2.data import pipeline
    from tests.conftest import make_source

    config, plan = engine.config, engine.plan
    if start is not None:
        engine.restore(start, "the test")
    before, source = engine.arrays(), make_source()
    batches = engine.dataset(
        functools.partial(
            pipeline.training_dataset, source, config, plan, first_step=first
        )
    )
    metrics = [
        engine.step(batch, plan.stage(step).dropout_rate)
        for step, batch in zip(range(first, last), batches, strict=False)
    ]
    assert engine.first_bad_step() is None
    rows = [[float(row[name]) for name in METRICS] for row in metrics]
    return {
        "metrics": np.array(rows),
        "before": before,
        "after": engine.arrays(),
    }


def start_on_jax(folder: pathlib.Path, jobs: list, devices: int = 1):
    """Starts a child that makes the steps of some jobs, one after another.

    Args:
        folder: for files.
        jobs: arguments of `run`, without the engine.
        devices: virtual ones that the child has.

    Returns:
        A function that waits for the results, a list.
    """
    path = folder / f"{devices}.pickle"
    path.write_bytes(pickle.dumps(jobs))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.steps", str(path)],
        env=jax_environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def wait() -> list[dict]:
        output, _ = child.communicate()
        assert child.returncode == 0, output
        return pickle.loads(path.read_bytes())

    return wait


def jax_environment(devices: int = 1) -> dict[str, str]:
    """Returns the environment of a child on JAX with virtual devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flag,
    }


if __name__ == "__main__":
    _path, _engine = pathlib.Path(sys.argv[1]), make_engine()
    _results = [run(_engine, *job) for job in pickle.loads(_path.read_bytes())]
    _path.write_bytes(pickle.dumps(_results))
