"""A small study, and results of runs that never were."""

import json
import random

import pytest

from efficientnetv2.study import definition, records

SMALL = {
    "title": "Two dropout rates",
    "dataset": "fashion_mnist",
    "recipe": "fashion_mnist",
    "overrides": "train.epochs=2, train.isize=24,\n data.ibase=16",
    "budgets": [0.5, 1],
    "base": "little",
    "arms": {
        "little": {
            "title": "dropout 0.1",
            "overrides": "model.dropout_rate=0.1",
        },
        "much": {"title": "dropout 0.5", "overrides": "model.dropout_rate=0.5"},
    },
    "questions": [
        {"claim": "Less is better.", "arm": "little", "against": "much"}
    ],
}


@pytest.fixture
def small():
    """A study of two arms."""
    return definition.parse_study("small", SMALL)


def row(arm: str, seed: int, top1: float, budget: float = 1.0, **others):
    """Returns a line of results.jsonl; `top1` is in percent."""
    return {
        **{"arm": arm, "budget": budget, "strength": 1.0, "seed": seed},
        **{"tunes": False, "epochs": 40 * budget, "steps": int(600 * budget)},
        **{"top1": top1 / 100, "training_top1": top1 / 100 + 0.1},
        **{"seconds": 100 * budget, "clock_seconds": 120 * budget},
        "machine": {"cpu": "a CPU", "cores": 2},
        **others,
    }


def write_made_up(output, study, gains=None, seeds=5):
    """Writes a whole made-up study below a folder.

    Args:
        output: the folder of all studies.
        study: the study.
        gains: points of top-1 by arm.
        seeds: of each arm and budget.
    """
    folder = output / study.name
    (folder / records.WORK).mkdir(parents=True)
    draw, configs = random.Random(0), definition.resolve(study)
    rows = [
        row(
            arm.name,
            seed,
            86
            + 2 * budget
            + (gains or {}).get(arm.name, 0)
            + draw.gauss(0, 0.3),
            budget,
        )
        for arm in study.arms
        for budget in study.budgets
        for seed in range(seeds)
    ]
    records.write_rows(folder, rows)
    state = {
        "definition": definition.to_dict(study),
        "models": {
            name: {
                "parameters": 1000 + 7 * k * (study.name == "fused"),
                "multiply_adds": 10**6,
            }
            for k, name in enumerate(configs)
        },
        "configs": {name: c.to_dict() for name, c in configs.items()},
        "code": {"efficientnetv2/config.py": "0" * 64},
    }
    seconds = {
        name: {
            str(size): 1e-4 * size**2 + 0.01 * k * (study.name == "fused")
            for size in definition.image_sizes(configs[study.base])
            + definition.image_sizes(configs[study.arms[-1].name])
        }
        for k, name in enumerate(configs)
    }
    times = {"machine": {"cpu": "a CPU", "cores": 2}, "seconds": seconds}
    (folder / records.STUDY).write_text(json.dumps(state))
    (folder / records.TIMES).write_text(json.dumps(times))
    if study.tune:
        tried = [
            row(
                arm.name,
                seed,
                80 + s,
                study.tune.budget,
                strength=s,
                tunes=True,
            )
            for arm in study.arms
            for s in study.tune.strengths
            for seed in study.tune.seeds
            if arm.strength is None and arm.strength_of is None
        ]
        chosen = {r["arm"]: {f"{study.tune.budget:g}": 0.25} for r in tried}
        content = {"chosen": chosen, "tried": tried}
        (folder / records.TUNING).write_text(json.dumps(content))
    return folder
