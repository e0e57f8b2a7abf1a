"""Studies as data: arms that differ in a few options, and what they answer.

A study is a file of `hparams/studies/` or a user's own YAML file:

    title: Two dropout rates
    dataset: fashion_mnist
    overrides: train.epochs=2, model.dropout_base=null
    base: little
    arms:
      little: {title: dropout 0.1, overrides: model.dropout_rate=0.1}
      much: {title: dropout 0.5, overrides: model.dropout_rate=0.5}
    questions:
    - {claim: Less dropout is better., arm: little, against: much}
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
from efficientnetv2.models import structure
from efficientnetv2.schema import option

_NAME = re.compile(r"[A-Za-z0-9]\w*")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the configurations that a study compares."""

    name: str = option(help="of the arm")
    title: str = option("", "for people")
    overrides: str = option("", "as in --hparam_str, after those of the study")
    strength: float | None = option(
        None,
        "of the study's regularization; null: tuned, or 1 without `tune`",
        0,
    )
    strength_of: str | None = option(
        None, "name of an arm whose strength this one has, too"
    )
    equal: Literal["time", "epochs"] = option(
        "time",
        "time: trains for as long as the base, by the measured time of its "
        "steps; epochs: for train.epochs",
    )


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of two arms, each at a budget."""

    claim: str = option(help="a sentence")
    arm: str = option(help="name of an arm")
    against: str = option(help="name of an arm")
    kind: Literal["better", "as_good"] = option(
        "better",
        "better: the top-1 of arm is higher; as_good: it is not lower by "
        "`margin` points",
    )
    margin: float = option(0.0, "points of top-1, of as_good", 0, 100)
    budget: float = option(1.0, "of arm")
    against_budget: float = option(1.0, "of against")


@dataclasses.dataclass(frozen=True)
class Tune:
    """How the strength of each arm is chosen."""

    strengths: list = option(help="to try")
    seeds: list = option(help="to try them with, which the study does not use")
    budget: float | None = option(
        None, "to try them at, for all others; null: each budget by itself"
    )
    split: str = option("minival", "that decides")


@dataclasses.dataclass(frozen=True)
class Study:
    """A study; without `name`, also the form of its file."""

    name: str = option(help="of its folder")
    title: str = option(help="for people")
    dataset: str = option(help="a name of datasets/, a YAML file or a folder")
    base: str = option(help="the arm that the others are compared with")
    arms: dict = option(help="in the order of the report")
    description: str = option("", "for people")
    reasons: dict = option({}, "why these images, epochs, ...; for people")
    recipe: str | None = option(
        None,
        "a name of hparams/recipes/ or a YAML file; null: the dataset's",
    )
    overrides: str = option("", "of all arms, as in --hparam_str")
    regularization: dict = option(
        {}, "options to their values at strength 1, which a strength scales"
    )
    budgets: list = option(
        (1.0,), "parts of the training, each a training of its own"
    )
    seeds: int = option(5, "0, 1, ... for each arm", 1)
    most_seeds: int = option(
        5, "for the arms of questions, until their intervals are narrow", 1
    )
    half_width: float = option(0.4, "of an interval that is narrow", 1e-6)
    curves: list = option((), "arms whose accuracy is drawn over time")
    questions: list = option((), "what is asked")
    tune: dict | None = option(None, "null: every arm has its own strength")

    def arm(self, name: str) -> Arm:
        """Returns the arm of that name.

        Raises:
            ConfigError: if there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = [arm.name for arm in self.arms]
        raise ConfigError(
            f"study {self.name}: there is no arm {name!r}."
            + suggest(str(name), names)
        )

    def configure(
        self,
        arm: Arm,
        strength: float = 1.0,
        scale: float = 1.0,
        flags: Mapping[str, Any] | None = None,
    ) -> ml_collections.ConfigDict:
        """Returns the configuration of an arm.

        Args:
            arm: of this study.
            strength: that the values of the regularization are multiplied by.
            scale: that the epochs are multiplied by.
            flags: further options, such as 'train.seed'.

        Raises:
            ConfigError: for an option that does not exist or cannot be.
        """
        values = {k: strength * v for k, v in self.regularization.items()}
        pairs = [self.overrides, arm.overrides]
        pairs = ",".join(pair.strip() for pair in pairs if pair.strip())
        try:
            if pairs and "=" not in pairs:
                raise ConfigError(
                    "overrides must be key=value pairs, such as "
                    f"'train.epochs=3', not {pairs!r}."
                )
            if "seed" in config_lib.parse_hparam_str(pairs).get("train", {}):
                raise ConfigError("train.seed is set by the study's seeds.")
            config = config_lib.load(
                dataset=self.dataset,
                recipe=self.recipe,
                hparam_str=pairs,
                flags={"train.seed": 0, **values, **(flags or {})},
            )
            config.train.epochs *= scale
            config_lib.check(config)
        except ConfigError as error:
            raise ConfigError(
                f"study {self.name}: arm {arm.name}: {error}"
            ) from None
        return config


def load_study(name: str, dataset: str | None = None) -> Study:
    """Reads a study.

    Args:
        name: of a file in `hparams/studies/`, or the path of a YAML file.
        dataset: takes the place of the study's.

    Raises:
        ConfigError: names the file, the option and what it should be.
    """
    content = declarative.named_or_path("studies", name)
    study = parse_study(pathlib.Path(name).stem, content)
    return dataclasses.replace(study, dataset=dataset or study.dataset)


def parse_study(name: str, content: Mapping[str, Any]) -> Study:
    """Checks the content of a study's file, and every arm's configuration."""
    where = f"study {name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: file names take letters, digits and '_'.")
    values = _read(Study, content, where, leave=("name",))
    if len(values["arms"]) < 2:
        raise ConfigError(
            f"{where}: 'arms' must hold at least two, such as 'plain: {{title: "
            "no dropout, overrides: model.dropout_rate=0}'."
        )
    arms = []
    for each, of_arm in values["arms"].items():
        if not _NAME.fullmatch(str(each)):
            raise ConfigError(
                f"{where}: arm {each}: use letters, digits and '_', as it "
                "becomes part of file names."
            )
        of_arm = _read(Arm, of_arm, f"{where}: arm {each}", leave=("name",))
        arms.append(Arm(name=each, **{"title": each, **of_arm}))
    values["questions"] = tuple(
        Question(**_read(Question, each, f"{where}: question {number}"))
        for number, each in enumerate(values.get("questions", []), 1)
    )
    if values.get("tune"):
        values["tune"] = Tune(**_read(Tune, values["tune"], f"{where}: tune"))
    study = Study(name=name, **(values | {"arms": tuple(arms)}))
    _check(study, where)
    return study


def to_dict(study: Study) -> dict:
    """Returns what `parse_study` reads, for the study's folder."""
    content = dataclasses.asdict(study)
    del content["name"]
    content["arms"] = {arm.pop("name"): arm for arm in content["arms"]}
    return content


def _read(kind: type, content: Any, where: str, leave: tuple = ()) -> dict:
    """Returns the values of a dataclass; texts are unwrapped."""
    values = schema.check_values(kind, content, where, leave)
    for key, each in values.items():
        if isinstance(each, str):
            values[key] = " ".join(each.split())
        elif isinstance(each, list):
            values[key] = tuple(each)
    return values


def _check(study: Study, where: str) -> None:
    """Checks names, budgets and seeds, which belong together."""
    for name in (study.base, *study.curves):
        study.arm(name)
    for budget in study.budgets:
        if not (isinstance(budget, (int, float)) and 0 < budget <= 1):
            raise ConfigError(
                f"{where}: budgets={budget!r} is not above 0 and at most 1."
            )
    for question in study.questions:
        study.arm(question.arm), study.arm(question.against)
        for budget in (question.budget, question.against_budget):
            if budget not in study.budgets:
                raise ConfigError(
                    f"{where}: {question.claim!r} asks about the budget "
                    f"{budget:g}, which is not in 'budgets'."
                )
    for arm in study.arms:
        if arm.strength_of is None:
            continue
        if arm.strength is not None or study.arm(arm.strength_of).strength_of:
            raise ConfigError(
                f"{where}: arm {arm.name}: strength_of={arm.strength_of} must "
                "name an arm that has a strength of its own, and leaves "
                "'strength' out."
            )
    if study.tune:
        if study.tune.budget not in (None, *study.budgets):
            raise ConfigError(
                f"{where}: tune: budget={study.tune.budget:g} is not in "
                "'budgets'."
            )
        used = range(max(study.seeds, study.most_seeds))
        for seed in study.tune.seeds:
            if seed in used:
                raise ConfigError(
                    f"{where}: the seed {seed} of 'tune' is one of the "
                    f"study's; take seeds from {len(used)} on."
                )


def resolve(
    study: Study, data_dir: str | None = None
) -> dict[str, ml_collections.ConfigDict]:
    """Returns the configuration of each arm at strength 1, with the seed 0.

    Raises:
        ConfigError: for an arm that cannot be, or two that are the same.
    """
    flags = {} if data_dir is None else {"data.data_dir": data_dir}
    configs, seen = {}, {}
    for arm in study.arms:
        configs[arm.name] = study.configure(arm, flags=flags)
        key = (arm.equal, arm.strength, config_lib.to_yaml(configs[arm.name]))
        if key in seen:
            raise ConfigError(
                f"study {study.name}: the arms {seen[key]} and {arm.name} have "
                "the same configuration; leave one out."
            )
        seen[key] = arm.name
    return configs


def image_sizes(config: ml_collections.ConfigDict) -> list[int]:
    """Returns the image sizes of a run's stages, ascending."""
    stages = config_lib.run_plan(config).stages
    return sorted({stage.image_size for stage in stages})


def describe_model(config: ml_collections.ConfigDict) -> dict:
    """Returns what the report says of an arm's model."""
    counts = structure.count_model(config.model.to_dict(), config.eval.isize)
    return {
        "parameters": counts.parameters,
        "multiply_adds": counts.multiply_adds,
        "image_sizes": image_sizes(config),
    }
