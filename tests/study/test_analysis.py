"""Intervals, verdicts, and how many seeds they need."""

import math

import pytest

from efficientnetv2.study import analysis, definition
from efficientnetv2.study.analysis import REFUTED, SUPPORTED, UNDECIDED
from tests.study.conftest import row


def test_an_interval_by_hand():
    found = analysis.interval([1.0, 2.0, 6.0])
    # mean 3, sd sqrt((4 + 1 + 9) / 2), t(0.975, 2) = 4.302653 from a table.
    half = 4.302653 * math.sqrt(7.0) / math.sqrt(3.0)
    assert (found.mean, found.n) == (3.0, 3)
    assert found.sd == pytest.approx(math.sqrt(7.0))
    assert found.low == pytest.approx(3.0 - half, rel=1e-6)
    assert found.half_width == pytest.approx(half, rel=1e-6)
    # Of one more value, whose own spread comes on top.
    assert found.of_one_more()[1] == pytest.approx(3.0 + 2 * half, rel=1e-6)
    # t(0.975, 29) = 2.045: 0.987 of 30 values, 1.005 of 29 (t = 2.048).
    assert found.seeds_for(1.0) == 30
    single = analysis.interval([5.0])
    assert (single.mean, single.n, str(single)) == (5.0, 1, "+5.00")
    assert math.isnan(single.low) and analysis.interval([]).n == 0
    assert str(analysis.interval([2.0, 2.0])) == "+2.00 [+2.00, +2.00]"


def _found(small, little, much, **options):
    """Returns the analysis of two arms, and the verdict on a question."""
    rows = [row("little", seed, top1) for seed, top1 in enumerate(little)]
    rows += [row("much", seed, top1) for seed, top1 in enumerate(much)]
    found = analysis.Analysis(small, rows)
    question = definition.Question("claim", "little", "much", **options)
    return found, found.judge(question)


@pytest.mark.parametrize(
    ("little", "much", "verdict", "words"),
    [
        (
            [91.0, 91.1, 91.2],
            [90.0, 90.0, 90.3],
            SUPPORTED,
            "'dropout 0.1' minus 'dropout 0.5': +1.00 [+0.75, +1.25] points of "
            "test top-1 (3 seeds).",
        ),
        ([90, 90, 90.3], [91, 91.1, 91.2], REFUTED, "-1.00"),
        ([90.0, 90.3, 90.2], [90.4, 90.0, 90.1], UNDECIDED, "3 more seeds"),
        (
            [90.1, 90.0, 90.1, 90.0],
            [90.0, 90.1, 90.1, 90.0],
            UNDECIDED,
            "interval is narrow enough: a difference of more than 0.13",
        ),
        ([91.0], [90.0], UNDECIDED, "needs two seeds"),
        ([], [90.0], UNDECIDED, "(0 seeds)"),
    ],
)
def test_better(small, little, much, verdict, words):
    _, found = _found(small, little, much)
    assert found.verdict == verdict
    assert words in found.reason


def test_as_good_has_a_margin(small):
    tops = [90.0, 90.05, 90.1], [90.1, 90.1, 90.2]
    for margin, verdict in ((0.0, REFUTED), (0.1, UNDECIDED), (0.5, SUPPORTED)):
        options = {"kind": "as_good", "margin": margin}
        assert _found(small, *tops, **options)[1].verdict == verdict
    assert _found(small, *tops, kind="better", margin=9)[1].verdict == REFUTED


def test_budgets_are_compared_with_each_other(small):
    rows = [row("little", seed, 91 + seed / 10, 0.5) for seed in range(3)]
    rows += [row("much", seed, 90 + seed / 9) for seed in range(2)]
    question = definition.Question("c", "little", "much", budget=0.5)
    verdict = analysis.Analysis(small, rows).judge(question)
    assert verdict.verdict == SUPPORTED and verdict.difference.n == 2
    assert "'dropout 0.1' at 50% of the time minus" in verdict.reason


def test_wide_intervals_ask_for_seeds(small):
    content = definition.to_dict(small) | {"most_seeds": 9}
    study = definition.parse_study("small", content)
    noisy = [90.0, 90.3, 90.2], [90.4, 90.0, 90.1]
    found, _ = _found(study, *noisy)
    assert found.more_seeds() == [("little", 1.0, 6), ("much", 1.0, 6)]
    # No further than most_seeds, and not where the interval is narrow.
    wide = [90.0, 93.0, 90.2], [90.4, 90.0, 90.1]
    assert _found(study, *wide)[0].more_seeds()[0] == ("little", 1.0, 9)
    narrow = [91.0, 91.0, 91.1], [90.0, 90.0, 90.0]
    assert _found(study, *narrow)[0].more_seeds() == []


def test_the_strength_of_the_highest_mean_is_chosen():
    tried = [
        row("much", seed, top1, budget, strength=strength)
        for budget, strength, tops in (
            (0.5, 2.0, (80, 82)),
            (0.5, 0.5, (82, 80)),
            (1.0, 0.5, (80, 80)),
            (1.0, 2.0, (79, 83)),
        )
        for seed, top1 in enumerate(tops)
    ]
    # Of equally good ones the weaker.
    chosen = analysis.best_strengths(tried)
    assert chosen == {"much": {"0.5": 0.5, "1": 2.0}}


def test_overfitting_is_training_minus_test(small):
    found, _ = _found(small, [90.0, 91.0], [])
    assert found.gap("little") == pytest.approx(10.0)
