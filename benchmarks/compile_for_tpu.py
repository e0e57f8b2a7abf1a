"""Compiles the shipped training step for a TPU v5e, on a machine without one.

    python benchmarks/compile_for_tpu.py --json=results/tpu.json

It needs libtpu 0.0.23 and JAX 0.7.2; TensorFlow is not needed. For every stage
of a recipe the step is lowered and compiled for one v5e core, and what the
compiler says of its memory and its floating-point operations is kept. Nothing
is executed.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import sys
import time

# libtpu compiles without a device if it is told what to compile for.
os.environ |= {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

import jax
import jaxlib
import keras
from jax.experimental import topologies

from efficientnetv2 import config as config_lib
from efficientnetv2.engines.jax import Engine

TOPOLOGY = "v5e:1x1"
# What the compiler expects each instruction to take.
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
PRECISION = "runtime.mixed_precision=mixed_bfloat16"
# Dataset, model, overrides: a batch that one core has the memory for.
RUNS = {
    "fashion_mnist": ("fashion_mnist", None, ""),
    "imagenet_b0": ("imagenet", "efficientnetv2-b0", "train.batch_size=256"),
    "imagenet_s": ("imagenet", "efficientnetv2-s", "train.batch_size=64"),
}


def compile_stage(engine: Engine, device, image_size: int) -> dict:
    """Compiles a step and returns what is known of it."""
    start = time.monotonic()
    lowered = engine.step_function([device]).lower(
        *engine.step_arguments(image_size)
    )
    lowering = time.monotonic() - start
    compiled = lowered.compile()
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "image_size": image_size,
        "batch_size": engine.config.train.batch_size,
        "seconds_to_lower": lowering,
        "seconds_to_compile": time.monotonic() - start - lowering,
        "state_and_batch_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "floating_point_operations": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
        "estimated_cycles": sum(map(int, _CYCLES.findall(compiled.as_text()))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--sizes", nargs="+", type=int, help="default: all")
    parser.add_argument("--batch_size", type=int, help="default: the run's")
    parser.add_argument("--json", help="file to add the figures to")
    options = parser.parse_args()
    topology = topologies.get_topology_desc(
        TOPOLOGY, "tpu", chips_per_host_bounds=(1, 1, 1)
    )
    content = {"environment": environment(), "steps": {}}
    path = pathlib.Path(options.json) if options.json else None
    if path and path.exists():
        content["steps"] = json.loads(path.read_text())["steps"]
    for name in options.runs:
        dataset, model, overrides = RUNS[name]
        if options.batch_size:
            overrides = f"train.batch_size={options.batch_size}"
        config = config_lib.load(
            dataset,
            model_name=model,
            hparam_str=f"{PRECISION},{overrides}",
        )
        plan = config_lib.run_plan(config)
        engine = Engine(config, plan)
        rows = content["steps"].setdefault(name, {})
        for size in dict.fromkeys(stage.image_size for stage in plan.stages):
            if options.sizes and size not in options.sizes:
                continue
            row = compile_stage(engine, topology.devices[0], size)
            row["model"] = config.model.model_name
            rows[str(size)] = row
            print(name, json.dumps(row), flush=True)
            if path:
                path.write_text(json.dumps(content, indent=1) + "\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"Peak memory of this process: {peak:.1f} GB")
    return 0


def environment() -> dict:
    """Returns what compiled."""
    import importlib.metadata

    return {
        "topology": TOPOLOGY,
        "precision": PRECISION.rpartition("=")[2],
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
        "keras": keras.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
