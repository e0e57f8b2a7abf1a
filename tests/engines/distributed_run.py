"""A run on several replicas, for test_distribution.py.

    python -m tests.engines.distributed_run DATASET MODEL_DIR STRATEGY [MORE]

Writes the logs of each step to MODEL_DIR/logs_WORKER.json.
"""

import json
import os
import pathlib
import sys

import tensorflow as tf

from efficientnetv2 import api
from efficientnetv2 import config as config_lib
from efficientnetv2.engines.tensorflow import Engine
from tests.conftest import TINY

# Without what each replica draws for itself.
SAME = (
    "model.survival_prob=1,model.dropout_rate=0,model.dropout_base=null,"
    "train.batch_size=16,train.batch_parts=1,train.epochs=1,train.stages=2,"
    "data.aug_prob=1,data.mixup_alpha=1,data.cutmix_alpha=1,train.lr_base=0.1"
)


def main(
    dataset: str, model_dir: str, strategy: str, options: str = ""
) -> None:
    if strategy == "mirrored":
        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            device, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    config = config_lib.load(
        dataset,
        recipe="fashion_mnist",
        hparam_str=",".join(filter(None, (TINY, SAME, options))),
        flags={"runtime.strategy": strategy},
    )
    kept = []
    step = Engine.step

    def keep(self, *arguments):
        metrics = step(self, *arguments)
        kept.append({name: float(value) for name, value in metrics.items()})
        return metrics

    Engine.step = keep
    api.execute(config, model_dir, mode="train")
    cluster = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
    path = pathlib.Path(model_dir, f"logs_{cluster['task']['index']}.json")
    path.write_text(json.dumps(kept))


if __name__ == "__main__":
    main(*sys.argv[1:])
