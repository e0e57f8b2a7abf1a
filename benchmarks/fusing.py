"""What fusing costs where it is meant to pay: on a TPU and on a GPU.

    python benchmarks/fusing.py --json=results/study/fused/costs.json

For the arms of the study `fused` one training step is compiled for a TPU v5e
core, and lowered for CUDA, on a machine with neither: what the compilers say is
kept, and nothing is executed. It needs what compile_for_tpu.py needs.
"""

import argparse
import collections
import json
import pathlib
import re
import sys

# Sets what libtpu must know before JAX is imported.
import compile_for_tpu as tpu
import jax
from jax.experimental import topologies

from efficientnetv2 import config as config_lib
from efficientnetv2.engines.jax import Engine
from efficientnetv2.study import definition

_OPERATION = re.compile(r"= \"?stablehlo\.(\w+)")
_GROUPS = re.compile(r"feature_group_count = (\d+)")


def lowered_for_cuda(step, arguments) -> dict:
    """Returns what is known of the program before a GPU's compiler has it."""
    lowered = step.trace(*arguments).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    counts = collections.Counter(_OPERATION.findall(text))
    groups = [int(each) for each in _GROUPS.findall(text)]
    costs = lowered.cost_analysis() or {}
    return {
        "operations": sum(counts.values()),
        "convolutions": sum(each == 1 for each in groups),
        "depthwise_convolutions": sum(each > 1 for each in groups),
        "floating_point_operations": costs.get("flops"),
        "bytes_accessed_unfused": costs.get("bytes accessed"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--json", help="file to add the figures to")
    options = parser.parse_args()
    topology = topologies.get_topology_desc(
        tpu.TOPOLOGY, "tpu", chips_per_host_bounds=(1, 1, 1)
    )
    content = {
        "environment": tpu.environment(),
        "batch_size": options.batch_size,
        "image_size": options.size,
        "arms": {},
    }
    path = pathlib.Path(options.json) if options.json else None
    if path and path.exists():
        content["arms"] = json.loads(path.read_text())["arms"]
    study = definition.load_study("fused")
    for arm in study.arms:
        if arm.name in content["arms"]:
            continue
        name, _, precision = tpu.PRECISION.partition("=")
        flags = {name: precision, "train.batch_size": options.batch_size}
        config = study.configure(arm, flags=flags)
        engine = Engine(config, config_lib.run_plan(config))
        arguments = engine.step_arguments(options.size)
        cuda = lowered_for_cuda(
            engine.step_function(jax.devices("cpu")), arguments
        )
        compiled = tpu.compile_stage(engine, topology.devices[0], options.size)
        content["arms"][arm.name] = {"tpu": compiled, "cuda": cuda}
        print(arm.name, json.dumps(content["arms"][arm.name]), flush=True)
        if path:
            path.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
