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
    assert small.curves == ("little", "much")
    assert small.hparam_str(small.arm("much")) == (
        "train.epochs=2,train.isize=24,data.ibase=16,model.dropout_rate=0.5"
    )
    configs = definition.resolve(small)
    assert configs["much"].model.dropout_rate == 0.5
    assert configs["little"].train.epochs == 2
    # What a study's folder keeps reads back as the study.
    again = definition.parse("small", definition.to_dict(small))
    assert again == small


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
        ("curves", ["mach"], ["curves", "'much'"]),
        ("curves", {"much": 1}, ["curves", "list"]),
        ("arms", {"one": {}}, ["at least two"]),
        ("arms/much/override", "a=1", ["arm much", "'overrides'"]),
        (
            "arms/much/overrides",
            {"train": {}},
            ["must be text", "--hparam_str"],
        ),
        ("arms/a b", {}, ["arm a b", "folder"]),
        ("hypotheses/0/arm", "litle", ["hypothesis 1", "'little'"]),
        ("hypotheses/0/test", "beter", ["'better'"]),
        ("hypotheses/0/max_time_ratio", 0.7, ["max_time_ratio", "'faster'"]),
        ("hypotheses/0/test", "faster", ["max_time_ratio"]),
        ("hypotheses/0/margin", 0.5, ["margin", "'faster'"]),
        ("inference_batch_size", 0, ["inference_batch_size", "at least 1"]),
    ],
)
def test_mistakes_are_named(path, value, words):
    with pytest.raises(ConfigError) as error:
        definition.parse("small", _changed(path, value))
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
        ("arms/much/overrides", "train.seed=1", ["--seeds"]),
        ("arms/much/overrides", "model.dropout_rate=2", ["too large"]),
        ("arms/much/overrides", "model.dropout_rate=0.1", ["same config"]),
        ("recipe", "fashion_mnst", ["'fashion_mnist'"]),
        ("overrides", "other.yaml", ["other.yaml", "key=value"]),
    ],
)
def test_every_arm_is_resolved_before_a_run(path, value, words):
    study = definition.parse("small", _changed(path, value))
    with pytest.raises(ConfigError) as error:
        definition.resolve(study)
    for word in words:
        assert word in str(error.value)


def test_a_study_by_name_or_path(tmp_path):
    with pytest.raises(ConfigError, match="Unknown study.*'regularization'"):
        definition.load("regularisation")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: T\ndataset: fashion_mnist\nbase: a\n"
        "arms: {a: {overrides: train.epochs=1}, b: {}}\n"
    )
    study = definition.load(str(path), dataset="cifar10")
    assert (study.name, study.dataset) == ("mine", "cifar10")
    assert definition.resolve(study)["a"].train.epochs == 1


@pytest.mark.parametrize("name", declarative.names("studies"))
def test_published_studies(name):
    study = definition.load(name)
    configs = definition.resolve(study)
    plans = {config_lib.run_plan(config) for config in configs.values()}
    # All arms have equal epochs and steps.
    assert len(plans) == 1
    assert len(study.curves) <= 7


def test_arms_of_regularization():
    study = definition.load("regularization")
    configs = definition.resolve(study)
    assert len(configs) == 10

    def ramps(arm):
        """Returns which ramps an arm has: size, RandAugment, ..."""
        config = configs[arm]
        plan = config_lib.run_plan(config)
        stages = progressive.build_stages(config, plan)
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

    assert ramps("everything_on") == [True] * 5
    assert ramps("plain") == [False] * 5
    assert ramps("regularization_off") == [True] + [False] * 4
    off = "image_size_off randaugment_off mixing_off dropout_off".split()
    for index, arm in enumerate([*off, "weight_decay_off"]):
        assert ramps(arm) == [k != index for k in range(5)]
    for arm, ramp in (("random_adaptive", True), ("random_fixed", False)):
        assert configs[arm].train.stage_order == "random"
        assert ramps(arm) == [True] + [ramp] * 4
