"""From the results of a study to its numbers and verdicts."""

import collections
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy import stats

from efficientnetv2.study import definition, records
from efficientnetv2.study.definition import Arm, Question, Study

CONFIDENCE = 0.95
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean of some values and Student's t-interval for it.

    Attributes:
        mean: of the values; nan for none.
        sd: standard deviation of a sample (n - 1); nan for one value.
        n: number of values.
        low, high: bounds of the interval of the mean; nan for one value.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def seeds_for(self, half_width: float) -> int:
        """Returns how many values make the interval so narrow, by its sd."""
        # By the normal distribution, whose quantile is below Student's.
        least = stats.norm.ppf(0.5 + CONFIDENCE / 2) * self.sd / half_width
        n = max(self.n, 2, math.ceil(least**2))
        while _quantile(n) * self.sd / math.sqrt(n) > half_width:
            n += 1
        return n

    def of_one_more(self) -> tuple[float, float]:
        """Returns where one further value lies in 95% of the cases."""
        half = _quantile(self.n) * self.sd * math.sqrt(1 + 1 / self.n)
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        """Returns '+0.12 [-0.30, +0.54]', without brackets for one value."""
        text = f"{self.mean:+.2f}"
        if self.n > 1:
            text += f" [{self.low:+.2f}, {self.high:+.2f}]"
        return text


def _quantile(n: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of some values and its interval."""
    n = len(values)
    mean = statistics.fmean(values) if values else math.nan
    if n < 2:
        return Interval(mean, math.nan, n, math.nan, math.nan)
    sd, low, high = statistics.stdev(values), mean, mean
    if sd:
        low, high = stats.t.interval(
            CONFIDENCE, n - 1, loc=mean, scale=sd / math.sqrt(n)
        )
    return Interval(mean, sd, n, float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the results say of a question.

    Attributes:
        question: that was asked.
        verdict: SUPPORTED, REFUTED or UNDECIDED.
        difference: in points of top-1, paired by seed.
        reason: the numbers in words.
    """

    question: Question
    verdict: str
    difference: Interval
    reason: str


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The results of a study, seen by arm and budget.

    Attributes:
        study: the study.
        rows: of results.jsonl.
    """

    study: Study
    rows: Sequence[Mapping]

    @property
    def arms(self) -> list[Arm]:
        """The arms that have results, in the order of the study."""
        done = {row["arm"] for row in self.rows}
        return [arm for arm in self.study.arms if arm.name in done]

    def values(self, arm: str, budget: float, key: str) -> dict[int, float]:
        """Returns a value of each result of an arm at a budget, by seed."""
        return {
            row["seed"]: row[key]
            for row in self.rows
            if (row["arm"], row["budget"]) == (arm, budget)
        }

    def mean(self, arm: str, budget: float, key: str) -> float:
        """Returns the mean of a value over seeds; nan without results."""
        return interval(list(self.values(arm, budget, key).values())).mean

    def top1(self, arm: str, budget: float = 1.0) -> Interval:
        """Returns the top-1 of the test in percent."""
        found = self.values(arm, budget, "top1").values()
        return interval([100 * value for value in found])

    def gap(self, arm: str, budget: float = 1.0) -> float:
        """Returns training minus test top-1 in points: the overfitting."""
        return 100 * (
            self.mean(arm, budget, "training_top1")
            - self.mean(arm, budget, "top1")
        )

    def difference(
        self,
        arm: str,
        against: str,
        budget: float = 1.0,
        against_budget: float = 1.0,
    ) -> Interval:
        """Returns the difference in top-1, in points, paired by seed."""
        ours = self.values(arm, budget, "top1")
        others = self.values(against, against_budget, "top1")
        seeds = sorted(ours.keys() & others.keys())
        return interval([100 * (ours[s] - others[s]) for s in seeds])

    def judge(self, question: Question) -> Verdict:
        """Returns what the results say of a question."""
        found = self._difference_of(question)
        margin = question.margin if question.kind == "as_good" else 0.0
        verdict = UNDECIDED
        if found.low > -margin:
            verdict = SUPPORTED
        elif found.high < -margin:
            verdict = REFUTED
        ours, others = (
            f"'{self.study.arm(arm).title}'"
            + (f" at {budget:.0%} of the time" if budget < 1 else "")
            for arm, budget in (
                (question.arm, question.budget),
                (question.against, question.against_budget),
            )
        )
        reason = (
            f"{ours} minus {others}: {found} points of test top-1 "
            f"({found.n} seed{'s' * (found.n != 1)})."
        )
        if margin:
            reason += f" The margin that was declared is {margin:g} points."
        if verdict == UNDECIDED:
            reason += self._what_is_missing(found)
        return Verdict(question, verdict, found, reason)

    def _difference_of(self, question: Question) -> Interval:
        return self.difference(
            question.arm,
            question.against,
            question.budget,
            question.against_budget,
        )

    def _what_is_missing(self, found: Interval) -> str:
        wanted = self.study.half_width
        if found.n < 2:
            return " An interval needs two seeds."
        if found.half_width > wanted:
            more = found.seeds_for(wanted) - found.n
            return (
                f" By this spread, {more} more seed{'s' * (more != 1)} would "
                f"make it +-{wanted:g} points."
            )
        largest = max(abs(found.low), abs(found.high))
        return (
            " The interval is narrow enough: a difference of more than "
            f"{largest:.2f} points is ruled out."
        )

    def more_seeds(self) -> list[tuple[str, float, int]]:
        """Returns (arm, budget, seeds) of what narrow intervals still need."""
        wanted = []
        for question in self.study.questions:
            found = self._difference_of(question)
            if found.n < 2 or found.half_width <= self.study.half_width:
                continue
            needed = found.seeds_for(self.study.half_width)
            seeds = min(max(needed, found.n + 1), self.study.most_seeds)
            wanted += [
                (question.arm, question.budget, seeds),
                (question.against, question.against_budget, seeds),
            ]
        return wanted


def load_results(folder: pathlib.Path) -> Analysis:
    """Reads a study's folder.

    Raises:
        StudyError: for files that cannot be read.
    """
    content = records.read_json(folder / records.STUDY)["definition"]
    rows = records.read_rows(folder)
    return Analysis(
        definition.parse_study(folder.name, content),
        [row for row in rows if not row["tunes"]],
    )


def best_strengths(
    rows: Iterable[Mapping],
) -> dict[str, dict[str, float]]:
    """Returns the strength of the highest mean top-1, by arm and budget.

    Of equally good ones the weakest.
    """
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in rows:
        of_budget = found[row["arm"]][f"{row['budget']:g}"]
        of_budget.setdefault(row["strength"], []).append(row["top1"])
    return {
        arm: {
            budget: max(
                sorted(tried), key=lambda each: statistics.fmean(tried[each])
            )
            for budget, tried in budgets.items()
        }
        for arm, budgets in found.items()
    }
