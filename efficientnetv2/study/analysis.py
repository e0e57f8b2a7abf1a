"""From the results of a study to its numbers and verdicts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from efficientnetv2.study import intervals
from efficientnetv2.study.definition import Hypothesis, Study
from efficientnetv2.study.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the data say of a hypothesis.

    Attributes:
        claim: of the hypothesis.
        verdict: one of those of `intervals`.
        reasons: sentences with the numbers.
    """

    claim: str
    verdict: str
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The results of a study, seen by arm.

    Attributes:
        study: the study.
        seeds: number of seeds that it should have.
        results: by (arm, seed), see `records.read_results`.
    """

    study: Study
    seeds: int
    results: Mapping[tuple[str, int], Mapping]

    @functools.cached_property
    def arms(self) -> list[str]:
        """The names of arms with a result, in the order of the study."""
        done = {arm for arm, _ in self.results}
        return [arm.name for arm in self.study.arms if arm.name in done]

    def title(self, arm: str) -> str:
        """Returns the title of an arm."""
        return self.study.arm(arm).title

    def of_arm(self, arm: str) -> dict[int, Mapping]:
        """Returns the results of an arm by seed."""
        return {s: r for (name, s), r in self.results.items() if name == arm}

    def values(
        self, arm: str, value: Callable[[Mapping], float]
    ) -> dict[int, float]:
        """Returns a value of each result of an arm, by seed."""
        return {s: value(r) for s, r in self.of_arm(arm).items()}

    def missing(self) -> int:
        """Returns how many runs have no result yet."""
        wanted = {
            (arm.name, seed)
            for arm in self.study.arms
            for seed in range(self.seeds)
        }
        return len(wanted - self.results.keys())

    def models_differ(self) -> bool:
        """Returns whether the arms are models of different size."""
        sizes = {
            (r["model"]["parameters"], r["model"]["multiply_adds"])
            for r in self.results.values()
        }
        return len(sizes) > 1

    def has_inference(self) -> bool:
        """Returns whether each run measured the speed of inference."""
        return all(r["inference"] for r in self.results.values())

    def top1(self, arm: str) -> dict[int, float]:
        """Returns the top-1 of the test in percent, by seed."""
        return self.values(arm, lambda r: 100 * r["test"]["top1"])

    def train_seconds(self, arm: str) -> dict[int, float]:
        """Returns the seconds of training without evaluation, by seed."""
        return self.values(arm, lambda r: r["times"]["train_seconds"])

    def difference(self, arm: str, against: str) -> Interval:
        """Returns the difference in top-1, in points, paired by seed."""
        return intervals.interval(
            intervals.paired(self.top1(arm), self.top1(against))
        )

    def time_ratio(self, arm: str, against: str) -> Interval:
        """Returns the ratio of training times, paired by seed.

        Times of different machines are not compared.
        """
        return intervals.interval(
            [
                self.train_seconds(arm)[seed]
                / self.train_seconds(against)[seed]
                for seed in self._comparable_seeds(arm, against)
            ]
        )

    def _comparable_seeds(self, arm: str, against: str) -> list[int]:
        ours, others = self.of_arm(arm), self.of_arm(against)
        return [
            seed
            for seed in sorted(ours.keys() & others.keys())
            if ours[seed]["machine"] == others[seed]["machine"]
        ]

    def time_to_reach(self, arm: str, against: str) -> list[float | None]:
        """Returns when a curve first reaches the end of another, by seed.

        Each time is a part of the other run's time of training; None where
        the curve never reaches the last validation top-1 of the other.
        """
        shares = []
        for seed in self._comparable_seeds(arm, against):
            times, accuracies = curve(self.results[arm, seed])
            other_times, other_accuracies = curve(self.results[against, seed])
            if not times or not other_times:
                continue
            time = intervals.first_reach(
                times, accuracies, other_accuracies[-1]
            )
            total = self.results[against, seed]["times"]["train_seconds"]
            shares.append(None if time is None else time / total)
        return shares

    def judge(self, hypothesis: Hypothesis) -> Verdict:
        """Returns what the results say of a hypothesis."""
        difference = self.difference(hypothesis.arm, hypothesis.against)
        if not difference.n:
            return Verdict(
                hypothesis.claim,
                intervals.UNDECIDED,
                (
                    f"'{self.title(hypothesis.arm)}' and "
                    f"'{self.title(hypothesis.against)}' have no seed in "
                    "common yet.",
                ),
            )
        accuracy = difference.is_above(-(hypothesis.margin or 0.0))
        reasons = [self._accuracy_sentence(hypothesis, difference, accuracy)]
        verdict = accuracy
        if hypothesis.test == "faster":
            in_time, sentences = self._time_sentences(hypothesis)
            reasons += sentences
            verdict = intervals.worst([accuracy, in_time])
        return Verdict(hypothesis.claim, verdict, tuple(reasons))

    def _accuracy_sentence(self, hypothesis, difference, accuracy) -> str:
        return (
            f"Top-1 of '{self.title(hypothesis.arm)}' minus that of "
            f"'{self.title(hypothesis.against)}': {points(difference)} points "
            f"({pairs(difference.n)}). "
        ) + _ACCURACY[bool(hypothesis.margin)][accuracy].format(
            margin=hypothesis.margin
        )

    def _time_sentences(self, hypothesis) -> tuple[str, list[str]]:
        """Returns whether a hypothesis' time holds, and the sentences."""
        limit = hypothesis.max_time_ratio
        whole = self.time_ratio(hypothesis.arm, hypothesis.against)
        verdict = whole.is_at_most(limit)
        sentences = [
            f"Its training takes {percent(whole)} of the time of the other "
            f"({pairs(whole.n)}); the claim is at most {100 * limit:g}%."
        ]
        shares = self.time_to_reach(hypothesis.arm, hypothesis.against)
        reached = [share for share in shares if share is not None]
        if shares:
            text = (
                "On the validation images its curve reaches the other's final "
                f"top-1 in {len(reached)} of {len(shares)} seeds"
            )
            if reached:
                share = intervals.interval(reached)
                text += f", first after {percent(share)} of the other's time"
            sentences.append(text + ".")
        if verdict != intervals.YES and shares and len(reached) == len(shares):
            # It may reach the accuracy before its own end.
            verdict = intervals.interval(reached).is_at_most(limit)
        return verdict, sentences


_UNDECIDED = "An interval needs two seeds."
# Whether a hypothesis has a margin, and what the interval says.
_ACCURACY = {
    False: {
        intervals.YES: "It is more accurate.",
        intervals.NO: "It is less accurate.",
        intervals.NOISE: "The interval contains 0: these seeds do not show "
        "which of the two is more accurate.",
        intervals.UNDECIDED: _UNDECIDED,
    },
    True: {
        intervals.YES: "It reaches that accuracy, within the margin of "
        "{margin:g} points that was declared.",
        intervals.NO: "It is less accurate by more than the margin of "
        "{margin:g} points that was declared.",
        intervals.NOISE: "The interval contains -{margin:g}, the margin that "
        "was declared: these seeds do not show whether it is that close.",
        intervals.UNDECIDED: _UNDECIDED,
    },
}


def curve(result: Mapping) -> tuple[list[float], list[float]]:
    """Returns seconds of training and validation top-1 in percent."""
    entries = result["curve"]
    return (
        [e["train_seconds"] - e["evaluation_seconds"] for e in entries],
        [100 * e["top1"] for e in entries],
    )


def stage_ends(result: Mapping) -> list[int]:
    """Returns the steps at which a run's stages end, but for the last.

    None where stages are drawn at random, or are all alike.
    """
    if result["config"]["train"]["stage_order"] == "random":
        return []
    stages = result["stages"]
    alike = [
        {k: v for k, v in s.items() if k not in ("first_step", "last_step")}
        for s in stages
    ]
    if all(stage == alike[0] for stage in alike):
        return []
    return [stage["last_step"] for stage in stages[:-1]]


def points(value: Interval) -> str:
    """Returns '+0.12 [-0.30, +0.54]', without brackets for one value."""
    text = f"{value.mean:+.2f}"
    if value.n > 1:
        text += f" [{value.low:+.2f}, {value.high:+.2f}]"
    return text


def percent(value: Interval) -> str:
    """Returns a ratio as '59.8% [58.1%, 61.5%]'."""
    if not value.n:
        return "an unknown part"
    text = f"{100 * value.mean:.1f}%"
    if value.n > 1:
        text += f" [{100 * value.low:.1f}%, {100 * value.high:.1f}%]"
    return text


def pairs(number: int) -> str:
    """Returns '3 pairs of seeds'."""
    return f"{number} pair{'s' * (number != 1)} of seeds"
