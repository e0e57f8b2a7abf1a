"""Layers of the configuration, its types, and its error messages."""

import functools

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative, runs
from efficientnetv2.config import ConfigError, load
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture
from efficientnetv2.options import ONE_TIME_OPTIONS, OPTIONS
from tests.conftest import examples, raises
from tests.test_options import PLAIN, typed


def test_later_layers_win():
    config = load("fashion_mnist")
    assert config.model.model_name == "efficientnetv2-pico"
    assert config.model.num_classes == 10
    small = load("fashion_mnist", model_name="efficientnetv2-s")
    assert small.model.blocks != config.model.blocks
    changed = load("fashion_mnist", hparam_str="train.batch_size=6,data.ram=3")
    assert changed.train.batch_size == 6
    assert changed.data.ram == 3.0
    text, flags = "train.seed=3", {"train.seed": 5}
    flagged = load("fashion_mnist", hparam_str=text, flags=flags)
    assert flagged.train.seed == 5
    with pytest.raises(AttributeError):
        flagged.train.batchsize = 3


def test_values_of_the_reference_syntax():
    parsed = config_lib.parse_hparam_str(
        "a.b=0,a.b=1,a.c=1e-5,d=true,e=null,f=crop|flip,g.h.i=text,"
    )
    assert parsed == {
        "a": {"b": 1, "c": 1e-5},
        "d": True,
        "e": None,
        "f": ["crop", "flip"],
        "g": {"h": {"i": "text"}},
    }


def test_the_saved_config_repeats_the_run(tmp_path):
    config = load(
        "fashion_mnist",
        hparam_str="train.isize=0.5,eval.isize=64,data.augname=null",
        model_name="efficientnetv2-b1",
    )
    path = tmp_path / "config.yaml"
    path.write_text(config_lib.to_yaml(config))
    again = load(hparam_str=str(path))
    assert again.to_dict() == config.to_dict()
    assert yaml.safe_load(path.read_text())["data"]["augname"] is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("effnetv1_autoaug", ("autoaug", "v1")),
        ("ft", ("cutout", "ft")),
        ("ft_randaug", ("randaug", "ft")),
        ("lite", (None, "lite")),
        # Without a prefix only the policy is named.
        ("ra_aa", ("ra_aa", "v1")),
        ("null", (None, "v1")),
        ("randaug,data.normalization=lite", ("randaug", "lite")),
    ],
)
def test_names_of_the_released_code_are_policy_and_normalization(
    name, expected
):
    config = load(
        "imagenet", "efficientnetv2-b0", hparam_str=f"data.augname={name}"
    )
    assert (config.data.augname, config.data.normalization) == expected


@pytest.mark.parametrize(
    ("name", "mode"), [("randaug", "v2"), ("effnetv1_randaug", "v1")]
)
def test_a_run_of_an_earlier_version_keeps_its_normalization(
    tmp_path, name, mode
):
    """There `randaug` alone also stood for V2's normalization."""
    config = load("fashion_mnist", "efficientnetv2-b0")
    assert config.data.normalization == "v1"
    old = config.to_dict()
    del old["data"]["normalization"]
    old["data"]["augname"] = name
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old))
    for again in (
        load(saved=config_lib.read_saved(tmp_path)),
        load(hparam_str=str(path)),
        runs.as_begun(runs.Run(tmp_path), config),
    ):
        assert again.data.augname == "randaug"
        assert again.data.normalization == mode
        assert not config_lib.differences(old, again.to_dict())


def test_the_recipe_overrides_the_dataset(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {num_classes: 3}")
    with pytest.raises(ConfigError, match="data.num_classes=3 does not match"):
        load("fashion_mnist", recipe=str(recipe))


@pytest.mark.parametrize(
    ("hparam_str", "words"),
    [
        ("train.batchsize=3", ["train.batchsize", "train.batch_size"]),
        ("batch_size=3", ["batch_size", "train.batch_size"]),
        ("train=3", ["train", "section"]),
        ("train.batch_size=big", ["train.batch_size", "whole number", "big"]),
        ("train.batch_size=1.5", ["train.batch_size", "whole number", "1.5"]),
        ("train.stages=true", ["train.stages", "whole number"]),
        ("train.lr_base=nan", ["train.lr_base", "nan"]),
        ("train.progressive_image_size=2", ["true or false"]),
        ("train.epochs=0.01,train.stages=99", ["train.stages=99", "at most"]),
        ("train.isize=7", ["train.isize", "7 pixels", "at least 8"]),
        ("eval.isize=4", ["eval.isize", "4 pixels"]),
        ("data.ibase=3", ["data.ibase", "3 pixels"]),
        ("train.optimizer=rmsprob", ["rmsprob", "'rmsprop'"]),
        ("train.split=trian", ["trian", "'train'"]),
        ("train.batch_size=70000", ["70000", "55000"]),
        ("model.num_classes=3", ["model.num_classes=3", "10 classes"]),
        ("data.transformations=crop|spin", ["spin"]),
        ("data.augname=randaugh", ["randaugh", "randaug"]),
        ("model.blocks=r1_k3", ["r1_k3"]),
        ("train.varsexp=(", ["train.varsexp"]),
        ("train.batch_size", ["train.batch_size", "key=value"]),
        ("train=1,train.seed=2", ["train.seed", "not a section"]),
        ("missing.yaml", ["missing.yaml"]),
        ("train.label_smoothing=1.5", ["too large"]),
        ("train.batch_size=0", ["too small"]),
    ],
)
def test_mistakes_are_named(hparam_str, words):
    with raises(ConfigError, *words):
        load("fashion_mnist", hparam_str=hparam_str)


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ({"dataset": "fashion-mnist"}, "fashion_mnist"),
        ({"model_name": "efficientnetv2_s"}, "efficientnetv2-s"),
        ({"recipe": "fashion_mnist_bes"}, "fashion_mnist_best"),
    ],
)
def test_unknown_names_show_the_nearest(arguments, nearest):
    with pytest.raises(ConfigError, match=f"Did you mean '{nearest}'"):
        load(**{"dataset": "fashion_mnist", **arguments})


def test_every_recipe_and_model_loads():
    for recipe in declarative.names("recipes"):
        assert load("fashion_mnist", recipe=recipe).train.epochs > 0
    for model in declarative.names("models"):
        config = load("fashion_mnist", model_name=model)
        assert config.model.model_name == model


def test_the_width_of_a_recipe_is_for_its_own_model():
    assert load("fashion_mnist").model.width_coefficient == 0.66
    for chosen in (
        {"model_name": "efficientnetv2-b0"},
        {"hparam_str": "model.model_name=efficientnetv2-b0"},
    ):
        model = load("fashion_mnist", **chosen).model
        assert model.width_coefficient == 1 and model.dropout_rate == 0.1


@pytest.mark.parametrize("survival", ["0", "null", "1"])
def test_regularization_that_is_off_as_in_the_released_code(survival):
    """There both are switched off by 0 or None."""
    config = load(
        "fashion_mnist",
        hparam_str=f"model.survival_prob={survival},model.dropout_rate=null,"
        "model.blocks=r2_k3_s1_e1_i8_o8_c1,model.feature_size=8",
    )
    stages = config_lib.run_plan(config).stages
    assert {stage.dropout_rate for stage in stages} == {0.0}
    model = architecture.build_network(config.model.to_dict())
    images = np.ones((8, 8, 8, 3), np.float32)
    first, second = (model(images, training=True) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_steps_follow_main_tf2_and_can_follow_main():
    """main_tf2.py counts whole batches, main.py divides as floats."""
    images, batch, epochs = 1_256_144, 4096, 350
    whole = load("imagenet", "efficientnetv2-s")
    plan = config_lib.run_plan(whole)
    assert plan.steps_per_epoch == images // batch
    assert plan.total_steps == epochs * (images // batch)
    steps = epochs * images // batch
    assert steps == 107_336
    longer = load(
        "imagenet", "efficientnetv2-s", hparam_str=f"train.min_steps={steps}"
    )
    assert config_lib.run_plan(longer).total_steps == steps


def test_differences_name_both_values():
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}
    assert config_lib.differences(old, new) == [
        ("a.c", 2, 3),
        ("d", "(not set)", 4),
    ]
    assert config_lib.differences(old, new, only_common=True) == [("a.c", 2, 3)]


@pytest.fixture(scope="module")
def quick_files():
    """Reads each file of hparams/ and datasets/ once."""
    read = declarative.read_yaml
    once = functools.cache(read)
    root = str(declarative.declarative_dir("hparams").parent)

    def read_yaml(path):
        return once(path) if str(path).startswith(root) else read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(declarative, "read_yaml", read_yaml)
        patch.setattr(config_lib, "read_yaml", read_yaml)
        yield


def _is_a_config_or_a_clear_error(**arguments):
    try:
        config = load("fashion_mnist", **arguments)
    except UserError as error:
        assert str(error)
        return
    assert config.is_locked
    assert config_lib.run_plan(config).total_steps >= 1
    again = load(saved=yaml.safe_load(config_lib.to_yaml(config)))
    expected = config.to_dict()
    for key in ONE_TIME_OPTIONS:
        section, option = key.split(".")
        expected[section][option] = False
    assert typed(again.to_dict()) == typed(expected)


_ODD = (
    "",
    *"null '' [] {} () | null|null nan inf -1 0 1e-30 1e30 true text".split(),
    *("9" * 20, "b'x'", "1j", "("),
)


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(OPTIONS))
def test_every_option_set_to_nothing_or_to_something_odd(quick_files, key):
    for value in _ODD:
        _is_a_config_or_a_clear_error(hparam_str=f"{key}={value}")
    for value in (None, "", [], {}, [None], b"x", {1: 2}):
        section, option = key.split(".")
        _is_a_config_or_a_clear_error(saved={section: {option: value}})


def test_the_number_of_classes_is_the_datasets():
    for value in ("", "null"):
        config = load("fashion_mnist", hparam_str=f"data.num_classes={value}")
        assert config.data.num_classes == config.model.num_classes == 10
    for value in ("num_classes=3", "num_classes=12", "multi_label=true"):
        with pytest.raises(ConfigError, match="does not match fashion_mnist"):
            load("fashion_mnist", hparam_str=f"data.{value}")


def test_groups_must_divide_the_channels():
    options = "model.bn_type=gn,model.gn_groups="
    assert load("fashion_mnist", hparam_str=f"{options}8").model.gn_groups == 8
    with pytest.raises(ConfigError, match="gn_groups=7 does not divide"):
        load("fashion_mnist", hparam_str=f"{options}7")


# A dataset may also be a folder, of which there are others on each machine.
_KEYS = sorted(OPTIONS.keys() - {"data.ds_name"})
_PIECES = st.text(max_size=3) | st.sampled_from(
    "true null nan 1e308 1 0 - . | = , ( { [ ~ 9 crop randaug silu".split()
)
_VALUES = st.lists(_PIECES, max_size=3).map("".join)


@pytest.mark.slow
@examples(100)
@given(
    text=_VALUES
    | st.lists(
        st.tuples(st.sampled_from(_KEYS), _VALUES).map("=".join), max_size=3
    ).map(",".join)
)
@example(text="train.epochs=1e308")
@example(text="train.epochs=" + "9" * 400)
@example(text="train.min_steps=" + "9" * 20)
@example(text="train.isize=2,eval.isize=" + "9" * 400)
@example(text="train.lr_base={[1]}")
@example(text="train.varsexp=" + "(" * 2000)
@example(text="train.varsexp=a{99999999999}")
@example(text="train.weight_decay_inc=-2")
def test_any_text_gives_a_config_or_a_clear_error(quick_files, text):
    _is_a_config_or_a_clear_error(hparam_str=text)


@pytest.mark.parametrize("name", ["5", "a|b", "true", "~nobody_of_this_name/x"])
def test_any_text_as_a_dataset_is_a_clear_error(quick_files, name):
    with pytest.raises(UserError, match="dataset|data.ds_name|folder"):
        load(hparam_str=f"data.ds_name={name}")


@pytest.mark.slow
@examples(100)
@given(
    content=st.text()
    | st.recursive(
        PLAIN | st.dates() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["train", "model", "data", "seed", *_KEYS])
                | PLAIN,
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ).map(yaml.safe_dump),
    argument=st.sampled_from(["hparam_str", "recipe", "model_name"]),
)
@example(content="train: &x {seed: *x}", argument="hparam_str")
@example(content="{a: " * 30_000, argument="hparam_str")
@example(content="- " * 30_000 + "a", argument="hparam_str")
@example(content="model: [1]", argument="recipe")
@example(content="a: !!bool b", argument="recipe")
@example(content="a: !!timestamp b", argument="recipe")
@example(content="a: !!int ''", argument="recipe")
def test_any_yaml_gives_a_config_or_a_clear_error(
    quick_files, tmp_path_factory, content, argument
):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(content, encoding="utf-8")
    _is_a_config_or_a_clear_error(**{argument: str(path)})


def test_aliases_that_multiply_are_refused(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for k in range(9):
        lines.append(f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]")
    path = tmp_path / "aliases.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases"):
        load("fashion_mnist", hparam_str=str(path))
