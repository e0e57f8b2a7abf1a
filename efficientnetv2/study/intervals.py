"""Means and 95% intervals over seeds, and what they say of a hypothesis."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

CONFIDENCE = 0.95
YES, NO, NOISE = "supported", "not supported", "within noise"
# Of fewer than two seeds, which have no interval.
UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean of some values and Student's t-interval for it.

    Attributes:
        mean: of the values.
        sd: standard deviation of a sample (n - 1); nan for one value.
        n: number of values.
        low, high: bounds of the interval of the mean; nan for one value.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float

    def is_above(self, limit: float = 0.0) -> str:
        """Returns YES, NO or, if the interval contains the limit, NOISE."""
        if self.n < 2:
            return UNDECIDED
        if self.low > limit:
            return YES
        return NO if self.high < limit else NOISE

    def is_at_most(self, limit: float) -> str:
        """Returns YES, NO or, if the interval contains the limit, NOISE."""
        if self.n < 2:
            return UNDECIDED
        if self.high <= limit:
            return YES
        return NO if self.low > limit else NOISE


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of some values, all nan for none, and its interval."""
    n = len(values)
    mean = statistics.fmean(values) if values else math.nan
    if n < 2:
        return Interval(mean, math.nan, n, math.nan, math.nan)
    sd = statistics.stdev(values)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, sd, n, mean - half, mean + half)


def paired(
    values: Mapping[int, float], others: Mapping[int, float]
) -> list[float]:
    """Returns the differences of the seeds that both have, in order."""
    seeds = sorted(values.keys() & others.keys())
    return [values[seed] - others[seed] for seed in seeds]


def first_reach(
    times: Sequence[float], accuracies: Sequence[float], target: float
) -> float | None:
    """Returns the first time at which an accuracy is at least `target`.

    Args:
        times: of the evaluations, ascending.
        accuracies: of the evaluations.
        target: to reach.

    Returns:
        The time of an evaluation, without interpolation; None if the target
        was never reached.
    """
    for time, accuracy in zip(times, accuracies, strict=True):
        if accuracy >= target:
            return time
    return None


def worst(verdicts: Sequence[str]) -> str:
    """Returns what holds of a claim with several parts."""
    for verdict in (NO, UNDECIDED, NOISE):
        if verdict in verdicts:
            return verdict
    return YES
