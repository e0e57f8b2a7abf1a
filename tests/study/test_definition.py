"""Study files: what they hold, and the mistakes that they name."""

import copy

import pytest

from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative, progressive
from efficientnetv2.config import ConfigError
from efficientnetv2.study import definition
from tests.study.conftest import SMALL


def test_a_study_is_read_whole(small):
    assert small.arm("much").title == "dropout 0.5"
    configs = definition.resolve(small)
    assert configs["much"].model.dropout_rate == 0.5
    assert configs["little"].train.epochs == 2
    # What a study's folder keeps reads back as the study.
    again = definition.parse_study("small", definition.to_dict(small))
    assert again == small


def test_strength_and_budget_change_the_configuration():
    content = SMALL | {"regularization": {"data.ram": 8, "data.ram_base": 2}}
    study = definition.parse_study("small", content)
    config = study.configure(study.arm("much"), strength=0.5, scale=0.25)
    assert (config.data.ram, config.data.ram_base) == (4, 1)
    assert config.train.epochs == 0.5
    assert config.model.dropout_rate == 0.5


def _changed(path: str, value):
    content = copy.deepcopy(SMALL)
    *parents, leaf = path.split("/")
    place = content
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[leaf] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("titel", "x", ["'titel'", "'title'"]),
        ("title", [3], ["title must be text", "3"]),
        ("base", "litle", ["'litle'", "'little'"]),
        ("curves", ["mach"], ["'much'"]),
        ("budgets", [0.5, 2], ["budgets=2"]),
        ("questions/0/budget", 0.25, ["Less is better.", "0.25", "budgets"]),
        ("tune", {"strengths": [1], "seeds": [4]}, ["seed 4", "from 5 on"]),
        (
            "tune",
            {"strengths": [1], "seeds": [9], "budget": 0.7},
            ["budget=0.7", "'budgets'"],
        ),
        ("arms/much/strength_of", "litle", ["'little'"]),
        ("arms/much/strength_of", "much", ["arm much", "strength of its own"]),
        ("arms", {"one": {}}, ["at least two"]),
        ("arms/much/override", "a=1", ["arm much", "'overrides'"]),
        (
            "arms/much/overrides",
            {"train": {}},
            ["must be text", "--hparam_str"],
        ),
        ("arms/a b", {}, ["arm a b", "file names"]),
        ("questions/0/arm", "litle", ["'litle'", "'little'"]),
        ("questions/0/kind", "beter", ["question 1", "'better'"]),
        ("seeds", 0, ["seeds", "at least 1"]),
    ],
)
def test_mistakes_are_named(path, value, words):
    with pytest.raises(ConfigError) as error:
        definition.parse_study("small", _changed(path, value))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "arms/much/overrides",
            "model.droput_rate=1",
            ["arm much", "dropout_"],
        ),
        ("arms/much/overrides", "train.seed=1", ["the study's seeds"]),
        ("arms/much/overrides", "model.dropout_rate=2", ["too large"]),
        ("arms/much/overrides", "model.dropout_rate=0.1", ["same config"]),
        ("recipe", "fashion_mnst", ["'fashion_mnist'"]),
        ("overrides", "other.yaml", ["other.yaml", "key=value"]),
    ],
)
def test_every_arm_is_resolved_before_a_run(path, value, words):
    study = definition.parse_study("small", _changed(path, value))
    with pytest.raises(ConfigError) as error:
        definition.resolve(study)
    for word in words:
        assert word in str(error.value)


def test_a_study_by_name_or_path(tmp_path):
    with pytest.raises(ConfigError, match="Unknown study.*'regularization'"):
        definition.load_study("regularisation")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: T\ndataset: fashion_mnist\nbase: a\n"
        "arms: {a: {overrides: train.epochs=1}, b: {}}\n"
    )
    study = definition.load_study(str(path), dataset="cifar10")
    assert (study.name, study.dataset) == ("mine", "cifar10")
    assert definition.resolve(study)["a"].train.epochs == 1


@pytest.mark.parametrize("name", declarative.names("studies"))
def test_published_studies(name):
    study = definition.load_study(name)
    for config in definition.resolve(study).values():
        sizes = definition.image_sizes(config)
        # Real ramps: the first stage costs at most 40% of the last.
        assert len(sizes) == 1 or sizes[0] ** 2 <= 0.4 * sizes[-1] ** 2
        # Time is that of one core; the last weights are the result.
        assert config.runtime.threads == config.train.batch_parts == 1
        assert config.eval.val_split is None
    assert study.reasons.keys() > {"images", "epochs", "sizes", "strengths"}
    assert 5 <= study.seeds <= study.most_seeds


def test_arms_of_regularization():
    study = definition.load_study("regularization")
    configs = definition.resolve(study)

    def ramps(arm):
        """Returns which ramps an arm has: size, RandAugment, ..."""
        config = configs[arm]
        plan = config_lib.run_plan(config)
        stages = plan.stages
        decay = [
            progressive.weight_decay(config, plan, step)
            for step in (0, plan.total_steps)
        ]
        columns = [
            [s.image_size for s in stages],
            [s.randaugment_magnitude for s in stages],
            [(s.mixup_alpha, s.cutmix_alpha) for s in stages],
            [s.dropout_rate for s in stages],
            decay,
        ]
        return [len(set(column)) > 1 for column in columns]

    for arm in ("progressive_adaptive", "equal_epochs", "random_adaptive"):
        assert ramps(arm) == [True] * 5
    assert ramps("fixed") == [False] * 5
    for arm in ("progressive_fixed", "random_fixed"):
        assert ramps(arm) == [True] + [False] * 4
    off = "image_size_off randaugment_off mixing_off dropout_off".split()
    for index, arm in enumerate([*off, "weight_decay_off"]):
        assert ramps(arm) == [k != index for k in range(5)]
    orders = {
        arm for arm in configs if configs[arm].train.stage_order == "random"
    }
    assert orders == {"random_adaptive", "random_fixed"}
    # Without any regularization.
    none = study.configure(study.arm("none"), study.arm("none").strength)
    assert none.data.augname is None and none.data.transformations == []
    assert none.model.dropout_rate == none.train.weight_decay == 0
    assert none.data.mixup_alpha == none.train.label_smoothing == 0
