"""Studies as data: arms that differ in a few options, and what they test.

A study is a file of `hparams/studies/` or a user's own YAML file:

    title: Two dropout rates
    description: What dropout does to a short run.
    dataset: fashion_mnist
    recipe: fashion_mnist
    overrides: train.epochs=2, model.dropout_base=null
    base: little
    arms:
      little: {title: dropout 0.1, overrides: model.dropout_rate=0.1}
      much: {title: dropout 0.5, overrides: model.dropout_rate=0.5}
    hypotheses:
    - {claim: Less dropout is better., test: better, arm: little, against: much}
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative, schema
from efficientnetv2.declarative import ConfigError, suggest
from efficientnetv2.schema import option

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the configurations that a study compares."""

    name: str = option(help="of the arm, and of its folder")
    title: str = option("", "for people")
    overrides: str = option("", "as in --hparam_str, after those of the study")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What is tested by comparing two arms."""

    claim: str = option(help="a sentence")
    test: Literal["better", "faster"] = option(
        help="better: the top-1 of arm is higher than that of against; "
        "faster: arm reaches it in max_time_ratio of the time"
    )
    arm: str = option(help="name of an arm")
    against: str = option(help="name of an arm")
    max_time_ratio: float | None = option(None, "of faster, above 0", 1e-9, 1)
    margin: float | None = option(
        None,
        "of faster: a top-1 that is lower by less than so many points counts "
        "as reached",
        0,
    )


@dataclasses.dataclass(frozen=True)
class Study:
    """A study; without `name`, also the form of its file."""

    name: str = option(help="of its folder")
    title: str = option(help="for people")
    dataset: str = option(help="a name of datasets/, a YAML file or a folder")
    base: str = option(help="the arm that the others are compared with")
    arms: dict = option(help="in the order of the report")
    curves: list = option((), "arms whose curves the report draws; (): all")
    description: str = option("", "for people")
    recipe: str | None = option(
        None,
        "a name of hparams/recipes/ or a YAML file; null: the dataset's",
    )
    overrides: str = option("", "of all arms, as in --hparam_str")
    hypotheses: list = option((), "what is tested")
    inference_batch_size: int | None = option(
        None,
        "images per batch when the speed of inference is measured after each "
        "run; null: it is not measured",
        1,
    )

    def arm(self, name: str) -> Arm:
        """Returns the arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def hparam_str(self, arm: Arm) -> str:
        """Returns the overrides of the study and of one of its arms."""
        return ",".join(
            pair.strip()
            for pair in f"{self.overrides},{arm.overrides}".split(",")
            if pair.strip()
        )


def load(name: str, dataset: str | None = None) -> Study:
    """Reads a study.

    Args:
        name: of a file in `hparams/studies/`, the path of a YAML file, or of
            the `study.json` beside a study's results.
        dataset: takes the place of the study's.

    Raises:
        ConfigError: names the file, the option and what it should be.
    """
    path = pathlib.Path(name)
    if path.suffix == ".json":
        # JSON is YAML; the folder has the study's name.
        content = declarative.read_yaml(path)
        content.pop("seeds", None)
        study = parse(path.absolute().parent.name, content)
    else:
        content = declarative.named_or_path("studies", name)
        study = parse(path.stem, content)
    return dataclasses.replace(study, dataset=dataset or study.dataset)


def parse(name: str, content: Mapping[str, Any]) -> Study:
    """Checks the content of a study's file, or of its `study.json`.

    The configurations are not looked at; `resolve` does that.
    """
    where = f"study {name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: call the file by letters, digits, '_' and '-'."
        )
    values = _read(Study, content, where, leave=("name",))
    arms = values["arms"]
    if len(arms) < 2:
        raise ConfigError(
            f"{where}: 'arms' must hold at least two, such as 'plain: {{title: "
            "no dropout, overrides: model.dropout_rate=0}'."
        )
    values["arms"] = tuple(
        _parse_arm(str(arm), arms[arm], where) for arm in arms
    )
    names = [arm.name for arm in values["arms"]]
    values["curves"] = tuple(values.get("curves", names))
    values["hypotheses"] = tuple(
        _parse_hypothesis(each, f"{where}: hypothesis {number}", names)
        for number, each in enumerate(values.get("hypotheses", []), 1)
    )
    for key, chosen in [("base", values["base"])] + [
        ("curves", curve) for curve in values["curves"]
    ]:
        _check_arm(chosen, names, f"{where}: {key}")
    return Study(name=name, **values)


def _read(kind: type, content: Any, where: str, leave: tuple = ()) -> dict:
    """Returns the values of a dataclass; texts are unwrapped."""
    values = schema.read(kind, content, where, leave)
    return {
        key: " ".join(each.split()) if isinstance(each, str) else each
        for key, each in values.items()
    }


def _check_arm(name, names: list[str], where: str) -> None:
    if name not in names:
        raise ConfigError(
            f"{where}: there is no arm {name!r}." + suggest(str(name), names)
        )


def _parse_arm(name: str, content: Any, where: str) -> Arm:
    where = f"{where}: arm {name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: call it by letters, digits, '_' and '-'; it names a "
            "folder."
        )
    values = _read(Arm, content, where, leave=("name",))
    return Arm(name=name, **{"title": name, **values})


def _parse_hypothesis(content: Any, where: str, names: list[str]) -> Hypothesis:
    found = Hypothesis(**_read(Hypothesis, content, where))
    for key in ("arm", "against"):
        _check_arm(getattr(found, key), names, f"{where}: {key}")
    if (found.test == "faster") != (found.max_time_ratio is not None):
        raise ConfigError(
            f"{where}: 'max_time_ratio', above 0 and at most 1, belongs to the "
            f"test 'faster'; it is {found.max_time_ratio!r} in the test "
            f"{found.test!r}."
        )
    if found.margin is not None and found.test != "faster":
        raise ConfigError(
            f"{where}: 'margin', points of top-1 from 0, belongs to the test "
            f"'faster'; it is {found.margin!r} in the test {found.test!r}."
        )
    return found


def to_dict(study: Study) -> dict:
    """Returns what `parse` reads, for `study.json`."""
    content = dataclasses.asdict(study)
    del content["name"]
    content["curves"] = list(study.curves)
    content["hypotheses"] = [
        {key: value for key, value in each.items() if value is not None}
        for each in content["hypotheses"]
    ]
    content["arms"] = {
        arm.name: {"title": arm.title, "overrides": arm.overrides}
        for arm in study.arms
    }
    return content


def resolve(
    study: Study, data_dir: str | None = None
) -> dict[str, ml_collections.ConfigDict]:
    """Returns the configuration of each arm, with the seed 0.

    Raises:
        ConfigError: for an option that does not exist or cannot be, in any
            arm, and for two arms that are the same.
    """
    flags = {"train.seed": 0}
    if data_dir is not None:
        flags["data.data_dir"] = data_dir
    configs: dict[str, ml_collections.ConfigDict] = {}
    for arm in study.arms:
        text = study.hparam_str(arm)
        try:
            if text and "=" not in text:
                raise ConfigError(
                    "overrides must be key=value pairs, such as "
                    f"'train.epochs=3', not {text!r}."
                )
            if "seed" in config_lib.parse_hparam_str(text).get("train", {}):
                raise ConfigError("train.seed is set by --seeds.")
            config = config_lib.load(
                dataset=study.dataset,
                recipe=study.recipe,
                hparam_str=text,
                flags=flags,
            )
        except ConfigError as error:
            raise ConfigError(
                f"study {study.name}: arm {arm.name}: {error}"
            ) from None
        for other, known in configs.items():
            if known.to_dict() == config.to_dict():
                raise ConfigError(
                    f"study {study.name}: the arms {other} and {arm.name} have "
                    "the same configuration; leave one out."
                )
        configs[arm.name] = config
    return configs
