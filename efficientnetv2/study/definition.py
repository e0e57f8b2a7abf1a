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
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative
from efficientnetv2.declarative import ConfigError, suggest

TESTS = ("better", "faster")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the configurations that a study compares.

    Attributes:
        name: of the arm, and of its folder.
        title: for people.
        overrides: as in --hparam_str, after those of the study.
    """

    name: str
    title: str
    overrides: str = ""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What is tested by comparing two arms.

    Attributes:
        claim: a sentence.
        test: 'better': the top-1 of `arm` is higher than that of `against`;
            'faster': `arm` reaches it in `max_time_ratio` of the time.
        arm, against: names of arms.
        max_time_ratio: of 'faster', in (0, 1].
        margin: of 'faster': a top-1 that is lower by less than so many points
            counts as reached.
    """

    claim: str
    test: str
    arm: str
    against: str
    max_time_ratio: float | None = None
    margin: float | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: of its folder.
        title, description: for people.
        dataset: a name of `datasets/`, a YAML file or a folder.
        recipe: a name of `hparams/recipes/` or a YAML file; None: the
            dataset's.
        overrides: of all arms, as in --hparam_str.
        base: the arm that the others are compared with.
        arms: in the order of the report.
        curves: names of the arms whose curves the report draws.
        hypotheses: what is tested.
        inference_batch_size: images a batch when the speed of inference is
            measured after each run; None: it is not measured.
    """

    name: str
    title: str
    dataset: str
    base: str
    arms: tuple[Arm, ...]
    curves: tuple[str, ...]
    description: str = ""
    recipe: str | None = None
    overrides: str = ""
    hypotheses: tuple[Hypothesis, ...] = ()
    inference_batch_size: int | None = None

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
    values = _fields(content, Study, where, left_out=("name",))
    arms = values.get("arms")
    if not isinstance(arms, Mapping) or len(arms) < 2:
        raise ConfigError(
            f"{where}: 'arms' must hold at least two, such as 'plain: {{title: "
            "no dropout, overrides: model.dropout_rate=0}'."
        )
    values["arms"] = tuple(
        _parse_arm(str(arm), arms[arm], where) for arm in arms
    )
    names = [arm.name for arm in values["arms"]]
    values.setdefault("curves", names)
    if not isinstance(values["curves"], list):
        raise ConfigError(f"{where}: 'curves' must be a list of arms.")
    values["curves"] = tuple(values["curves"])
    hypotheses = values.get("hypotheses", [])
    if not isinstance(hypotheses, list):
        raise ConfigError(f"{where}: 'hypotheses' must be a list.")
    values["hypotheses"] = tuple(
        _parse_hypothesis(each, f"{where}: hypothesis {number}", names)
        for number, each in enumerate(hypotheses, 1)
    )
    for key in ("title", "dataset", "base"):
        if not isinstance(values.get(key), str):
            raise ConfigError(f"{where} needs '{key}: ...'.")
    for option, chosen in [("base", values["base"])] + [
        ("curves", curve) for curve in values["curves"]
    ]:
        _check_arm(chosen, names, f"{where}: {option}")
    batch = values.get("inference_batch_size")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ConfigError(
            f"{where}: inference_batch_size must be a whole number of at least "
            f"1, not {batch!r}."
        )
    return Study(name=name, **values)


def _fields(content, kind, where: str, left_out: Iterable[str] = ()) -> dict:
    """Returns the values of a dataclass; texts are checked to be texts."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {content!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    valid = [name for name in fields if name not in left_out]
    values = {}
    for key, value in content.items():
        if key not in valid:
            raise ConfigError(
                f"{where}: unknown option {key!r}." + suggest(str(key), valid)
            )
        text = fields[key].type in (str, str | None)
        if text and not (
            isinstance(value, str)
            or (value is None and fields[key].default is None)
        ):
            hint = ""
            if key == "overrides":
                hint = " Write them as in --hparam_str: train.epochs=3, ..."
            raise ConfigError(
                f"{where}: {key} must be text, not {value!r}.{hint}"
            )
        values[key] = " ".join(value.split()) if text and value else value
    return values


def _check_arm(name, names: list[str], where: str) -> None:
    if name not in names:
        raise ConfigError(
            f"{where}: there is no arm {name!r}." + suggest(str(name), names)
        )


def _parse_arm(name: str, content, where: str) -> Arm:
    where = f"{where}: arm {name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: call it by letters, digits, '_' and '-'; it names a "
            "folder."
        )
    values = _fields(content, Arm, where, left_out=("name",))
    return Arm(name=name, **{"title": name, **values})


def _parse_hypothesis(content, where: str, names: list[str]) -> Hypothesis:
    values = _fields(content, Hypothesis, where)
    for key in ("claim", "test", "arm", "against"):
        if key not in values:
            raise ConfigError(f"{where} needs '{key}: ...'.")
    if values["test"] not in TESTS:
        raise ConfigError(
            f"{where}: test={values['test']!r} is not valid."
            + suggest(values["test"], list(TESTS))
        )
    for key in ("arm", "against"):
        _check_arm(values[key], names, f"{where}: {key}")
    ratio = values.get("max_time_ratio")
    if (values["test"] == "faster") != (ratio is not None) or (
        ratio is not None
        and not (isinstance(ratio, (int, float)) and 0 < ratio <= 1)
    ):
        raise ConfigError(
            f"{where}: 'max_time_ratio', above 0 and at most 1, belongs to the "
            f"test 'faster'; it is {ratio!r} in the test {values['test']!r}."
        )
    margin = values.get("margin")
    if margin is not None and (
        values["test"] != "faster"
        or not isinstance(margin, (int, float))
        or margin < 0
    ):
        raise ConfigError(
            f"{where}: 'margin', points of top-1 from 0, belongs to the test "
            f"'faster'; it is {margin!r} in the test {values['test']!r}."
        )
    return Hypothesis(**values)


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
