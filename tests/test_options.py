"""The schema of the options, and what is written from it."""

import json
import pathlib

import ml_collections
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2 import config as config_lib
from efficientnetv2 import schema
from efficientnetv2.config import ConfigError
from efficientnetv2.options import ONE_TIME_OPTIONS, OPTIONS, SECTIONS
from tests.conftest import examples

_NAMES = st.from_regex(r"[a-z][a-z_]{0,9}", fullmatch=True).filter(
    lambda text: text not in ("true", "false", "null", "none")
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    _NAMES,
)
_LEAVES = PLAIN | st.lists(PLAIN, min_size=2, max_size=4)


def _as_text(value):
    """Returns a value as --hparam_str has it."""
    if isinstance(value, list):
        return "|".join(map(_as_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def typed(value):
    """Returns what is equal only for equal values of equal types."""
    if isinstance(value, dict):
        return {key: typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    return type(value), value


def test_base_yaml_and_the_page_of_options_follow_from_the_schema():
    for path, text in schema.written_files(SECTIONS).items():
        message = f"{path}: run `python -m efficientnetv2.options`"
        assert path.read_text() == text, message
    base = yaml.safe_load(pathlib.Path("hparams/base.yaml").read_text())
    assert typed(base) == typed(schema.nest(config_lib.defaults()))


def _apply(nested):
    """Returns the options after a layer on the defaults."""
    flat = config_lib.defaults()
    config_lib._apply(flat, nested, "test")
    return flat


@examples(100)
@given(
    key=st.sampled_from(sorted(OPTIONS)),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text()
    ),
)
def test_any_value_has_the_right_type_or_is_a_clear_error(key, value):
    try:
        flat = _apply(schema.nest({key: value}))
    except ConfigError as error:
        assert key in str(error)
    else:
        assert flat[key] is None or isinstance(flat[key], OPTIONS[key].kind)


@examples(60)
@given(
    nested=st.dictionaries(
        _NAMES, st.dictionaries(_NAMES, _LEAVES, min_size=1, max_size=3)
    ),
    blank=st.sampled_from(["", " "]),
)
def test_any_pairs_parse_to_their_values(nested, blank):
    text = ",".join(
        f"{blank}{key}{blank}={blank}{_as_text(value)}{blank}"
        for key, value in schema.flatten(nested).items()
    )
    assert typed(config_lib.parse_hparam_str(text)) == typed(nested)


def _valid(key):
    """Returns a strategy for the valid values of an option."""
    option = OPTIONS[key]
    kind, high = option.kind, option.high
    low = 0 if option.low is None and high is None else option.low
    if option.choices and kind is not list:
        values = st.sampled_from(option.choices)
    elif key == "model.blocks":
        block = "r{}_k{}_s{}_e{}_i8_o{}_se0.25_c{}".format
        numbers = [st.integers(1, 9)] * 5
        values = st.lists(
            st.builds(block, *numbers, st.integers(0, 1)), max_size=3
        )
    elif key == "train.callbacks":
        values = st.lists(st.just("module:Class"), min_size=1, max_size=3)
    elif kind is list:
        values = st.lists(st.just("crop"), min_size=1, max_size=3)
    elif kind is bool:
        values = st.booleans()
    elif kind is int:
        values = st.integers(low, 10**6 if high is None else high)
    elif kind is float:
        values = st.floats(low, high, allow_nan=False, allow_infinity=False)
    else:
        values = _NAMES
    return values | st.none() if option.nullable else values


@pytest.mark.slow
@examples(40)
@given(
    st.fixed_dictionaries(
        {}, optional={key: _valid(key) for key in sorted(OPTIONS)}
    )
)
def test_valid_options_are_taken_and_come_back_from_yaml(options):
    text = ",".join(f"{key}={_as_text(v)}" for key, v in options.items())
    flat = _apply(config_lib.parse_hparam_str(text))
    config = ml_collections.ConfigDict(schema.nest(flat))
    again = _apply(yaml.safe_load(config_lib.to_yaml(config)))
    assert flat == {**config_lib.defaults(), **options}
    once = dict.fromkeys(ONE_TIME_OPTIONS, False)
    assert again == {**config_lib.defaults(), **options, **once}
    for taken in (flat, again):
        given_options = {key: taken[key] for key in options.keys() - once}
        expected = {key: options[key] for key in options.keys() - once}
        assert typed(given_options) == typed(expected)
