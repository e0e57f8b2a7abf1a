"""Results of runs that never were, in the form that runs leave."""

import dataclasses
import json
import random

from efficientnetv2 import config as config_lib
from efficientnetv2 import progressive
from efficientnetv2.models import counting
from efficientnetv2.study import definition
from efficientnetv2.study.records import Folder

ENVIRONMENT = {
    "python": "3.11.7",
    "tensorflow": "2.21.0",
    "keras": "3.15.1",
    "numpy": "2.4.6",
    "devices": ["CPU"],
}
CODE = {
    "efficientnetv2/config.py": "0" * 64,
    "efficientnetv2/main.py": "1" * 64,
}


def result(
    study, arm: str, seed: int, config, gain: float, speed: float
) -> dict:
    """Returns a result of realistic shape.

    Args:
        study, arm, seed: of the run.
        config: of the arm.
        gain: added to the accuracy, in parts of 1.
        speed: a factor of the time.
    """
    draw = random.Random(f"{arm} {seed}")
    plan = config_lib.run_plan(config)
    stages = progressive.build_stages(config, plan)
    resolved = json.loads(json.dumps(config.to_dict()))
    resolved["train"]["seed"] = seed
    counts = counting.total(counting.count_stages(resolved["model"], 40))
    cost = [stage.image_size**2 for stage in stages]
    curve, seconds, evaluation = [], 0.0, 0.0
    for k in range(8):
        stage = stages[k * len(stages) // 8]
        seconds += speed * 45 * cost[stages.index(stage)] / 1600
        evaluation += 4.0
        top1 = 0.905 + gain - 0.15 * 0.5**k + draw.gauss(0, 0.002)
        curve.append(
            {
                "top1": top1,
                "top5": 0.997,
                "images": 5000,
                "step": plan.total_steps * (k + 1) // 8,
                "epoch": (k + 1) / 2,
                "train_seconds": seconds + evaluation,
                "evaluation_seconds": evaluation,
            }
        )
    inference = None
    if study.inference_batch_size:
        inference = {
            "images_per_second": 2500 / speed + draw.gauss(0, 20),
            "lowest": 2300 / speed,
            "highest": 2600 / speed,
            "batch_size": study.inference_batch_size,
            "image_size": 40,
            "rounds": 7,
            "batches_per_round": 20,
        }
    return {
        "study": study.name,
        "arm": arm,
        "seed": seed,
        "dataset": study.dataset,
        "recipe": study.recipe,
        "overrides": study.hparam_str(study.arm(arm)),
        "command": f"python -m efficientnetv2.main --seed={seed}",
        "config": resolved,
        "num_images": plan.num_images,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "model": {
            "parameters": counts.parameters,
            "trainable_parameters": counts.trainable,
            "multiply_adds": counts.multiply_adds,
            "image_size": 40,
        },
        "test": {
            "top1": 0.9 + gain + draw.gauss(0, 0.002),
            "top5": 0.997,
            "images": 10000,
        },
        "best": curve[-1],
        "curve": curve,
        "times": {
            "train_seconds": seconds,
            "evaluation_seconds": evaluation,
            "wall_seconds": seconds + evaluation + 30,
        },
        "train_images_per_second": plan.total_steps * 128 / seconds,
        "inference": inference,
        "environment": dict(ENVIRONMENT),
        "machine": {"cpu": "a CPU", "cores": 2},
        "code": dict(CODE),
    }


def write(output, study, seeds=3, gains=None, speeds=None) -> Folder:
    """Writes a whole made-up study below a folder.

    Args:
        output: the folder of all studies.
        study: the study.
        seeds: number of seeds.
        gains, speeds: by arm, see `result`.
    """
    folder = Folder(output / study.name)
    contents = {
        folder.result(arm, seed): result(
            study,
            arm,
            seed,
            config,
            (gains or {}).get(arm, 0.0),
            (speeds or {}).get(arm, 1.0),
        )
        for arm, config in definition.resolve(study).items()
        for seed in range(seeds)
    }
    contents[folder.definition] = definition.to_dict(study) | {"seeds": seeds}
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder
