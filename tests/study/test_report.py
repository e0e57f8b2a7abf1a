"""Intervals, verdicts, and a report that is a function of the JSON files."""

import json
import math
import re

import pytest

from efficientnetv2 import cli, commands
from efficientnetv2.reports import study as report
from efficientnetv2.study import definition, intervals, records
from efficientnetv2.study.analysis import Analysis, curve, stage_ends
from efficientnetv2.study.records import StudyError
from tests.study import made_up


def test_an_interval_by_hand():
    found = intervals.interval([1.0, 2.0, 6.0])
    # mean 3, sd sqrt((4 + 1 + 9) / 2), t(0.975, 2) = 4.302653 from a table.
    assert found.mean == pytest.approx(3.0)
    assert found.sd == pytest.approx(math.sqrt(7.0))
    half = 4.302653 * math.sqrt(7.0) / math.sqrt(3.0)
    assert found.low == pytest.approx(3.0 - half, rel=1e-6)
    assert found.high == pytest.approx(3.0 + half, rel=1e-6)
    single = intervals.interval([5.0])
    assert (single.mean, single.n) == (5.0, 1)
    assert math.isnan(single.low) and math.isnan(single.sd)
    assert intervals.interval([]).n == 0


def test_pairs_are_by_seed():
    differences = intervals.paired({2: 5.0, 0: 3.0, 7: 1.0}, {0: 1.0, 2: 1.5})
    assert differences == [2.0, 3.5]


@pytest.mark.parametrize(
    ("values", "above_zero", "at_most_one"),
    [
        ([1.0, 1.1, 1.2], intervals.YES, intervals.NOISE),
        ([-0.5, -0.6, -0.4], intervals.NO, intervals.YES),
        ([-0.5, 0.6, 0.1], intervals.NOISE, intervals.NOISE),
        ([2.0, 2.1, 2.2], intervals.YES, intervals.NO),
        ([0.0, 0.0], intervals.NOISE, intervals.YES),
        ([9.0], intervals.UNDECIDED, intervals.UNDECIDED),
    ],
)
def test_what_an_interval_says(values, above_zero, at_most_one):
    found = intervals.interval(values)
    assert found.is_above() == above_zero
    assert found.is_at_most(1.0) == at_most_one


def test_the_first_time_that_reaches_a_target():
    times, accuracies = [1.0, 2.0, 3.0], [50.0, 70.0, 60.0]
    assert intervals.first_reach(times, accuracies, 55.0) == 2.0
    assert intervals.first_reach(times, accuracies, 70.0) == 2.0
    assert intervals.first_reach(times, accuracies, 71.0) is None


def _result(top1, seconds, validation=(0.8, 0.9), machine="a"):
    """Returns the part of a result that a verdict needs.

    The validation top-1 are those at equal parts of the time.
    """
    count = len(validation)
    return {
        "test": {"top1": top1 / 100},
        "machine": machine,
        "times": {"train_seconds": seconds},
        "curve": [
            {
                "top1": value,
                "train_seconds": seconds * (k + 1) / count + 5.0,
                "evaluation_seconds": 5.0,
            }
            for k, value in enumerate(validation)
        ],
    }


def _judge(small, little, much, **changes):
    """Judges a claim of the small study by results of its two arms."""
    hypothesis = definition.Hypothesis(
        "claim", changes.pop("test", "better"), "little", "much", **changes
    )
    results = {
        (arm, seed): result
        for arm, of_arm in (("little", little), ("much", much))
        for seed, result in enumerate(of_arm)
    }
    return Analysis(small, len(little), results).judge(hypothesis)


NOISY = [(90.0, 90.4), (90.3, 90.0), (90.2, 90.1)]


@pytest.mark.parametrize(
    ("tops", "verdict", "words"),
    [
        (
            [(91.0, 90.0), (91.1, 90.0), (91.2, 90.3)],
            intervals.YES,
            "+1.00 [+0.75, +1.25] points (3 pairs of seeds). It is more",
        ),
        (
            [(90.0, 91.0), (90.0, 91.1), (90.3, 91.2)],
            intervals.NO,
            "It is less accurate",
        ),
        (NOISY, intervals.NOISE, "The interval contains 0"),
        ([(91.0, 90.0)], intervals.UNDECIDED, "needs two seeds"),
    ],
)
def test_better(small, tops, verdict, words):
    little = [_result(a, 60) for a, _ in tops]
    much = [_result(b, 100) for _, b in tops]
    found = _judge(small, little, much)
    assert found.verdict == verdict
    assert words in " ".join(found.reasons)


BETTER = [(91.0, 90.0), (91.1, 90.0), (91.2, 90.3)]
WORSE = [(b, a) for a, b in BETTER]


@pytest.mark.parametrize(
    ("tops", "seconds", "validation", "verdict", "words"),
    [
        (BETTER, (60, 61, 62), (0.7, 0.9), intervals.YES, "61.0% [58.5%"),
        # Accuracy is not reached, however short the time.
        (WORSE, (60, 61, 62), (0.7, 0.8), intervals.NO, "in 0 of 3 seeds"),
        (NOISY, (60, 61, 62), (0.7, 0.9), intervals.NOISE, "contains 0"),
        # Accurate, but late: the whole run and the curve.
        (BETTER, (90, 91, 92), (0.7, 0.9), intervals.NO, "at most 70%"),
        # The whole run is long, but its curve was there half way.
        (BETTER, (90, 91, 92), (0.9, 0.9), intervals.YES, "45.5% [44.3%"),
        # A time whose interval holds the limit.
        (BETTER, (60, 70, 85), (0.7, 0.9), intervals.NOISE, "71.7% [40.4%"),
    ],
)
def test_faster(small, tops, seconds, validation, verdict, words):
    little = [
        _result(a, time, validation)
        for (a, _), time in zip(tops, seconds, strict=True)
    ]
    much = [_result(b, 100, (0.8, 0.9)) for _, b in tops]
    found = _judge(small, little, much, test="faster", max_time_ratio=0.7)
    assert found.verdict == verdict
    assert words in " ".join(found.reasons)


@pytest.mark.parametrize(
    ("margin", "verdict", "words"),
    [
        (None, intervals.NO, "less accurate"),
        (0.1, intervals.NOISE, "contains -0.1, the margin"),
        (0.01, intervals.NO, "by more than the margin of 0.01 points"),
        (0.5, intervals.YES, "within the margin of 0.5 points"),
    ],
)
def test_a_margin_of_accuracy(small, margin, verdict, words):
    little = [_result(top1, 60) for top1 in (90.0, 90.05, 90.1)]
    much = [_result(top1, 100) for top1 in (90.1, 90.1, 90.2)]
    found = _judge(
        small, little, much, test="faster", max_time_ratio=0.7, margin=margin
    )
    assert found.verdict == verdict
    assert words in " ".join(found.reasons)


def test_times_of_different_machines_are_not_compared(small):
    little = [_result(91, 60, machine=m) for m in "aab"]
    much = [_result(90, 100, machine="a") for _ in range(3)]
    found = _judge(small, little, much, test="faster", max_time_ratio=0.7)
    assert "(2 pairs of seeds)" in " ".join(found.reasons)


def test_an_arm_without_results_is_undecided(small):
    found = _judge(small, [], [_result(90, 100)])
    assert found.verdict == intervals.UNDECIDED
    assert "no seed in common" in found.reasons[0]


def test_ends_of_stages():
    configs = definition.resolve(study := definition.load("regularization"))
    ends = {
        arm: stage_ends(made_up.result(study, arm, 0, configs[arm], 0.0, 1.0))
        for arm in ("everything_on", "random_adaptive", "plain")
    }
    assert ends["everything_on"] == [286, 572]
    assert ends["random_adaptive"] == ends["plain"] == []


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder with a made-up study and its report."""
    output = tmp_path_factory.mktemp("output")
    study = definition.load("fused")
    made_up.write(output, study, gains={"fused_3": 0.02, "fused_7": -0.02})
    report.build(output, log=lambda line: None)
    return output


def test_every_number_is_of_the_json_files(reported):
    text = (reported / "REPORT.md").read_text()
    results = records.read_results(records.Folder(reported / "fused"))
    tops = [100 * results["fused_3", s]["test"]["top1"] for s in range(3)]
    base = [100 * results["fused_0", s]["test"]["top1"] for s in range(3)]
    found = intervals.interval(tops)
    difference = intervals.interval(
        [a - b for a, b in zip(tops, base, strict=True)]
    )
    seconds = [
        results["fused_3", s]["times"]["train_seconds"] for s in range(3)
    ]
    row = next(s for s in text.splitlines() if s.startswith("| stages 1 to 3"))
    assert row == (
        f"| stages 1 to 3 fused | {found.mean:.2f} | {found.sd:.2f} | 3 | "
        f"{difference.mean:+.2f} [{difference.low:+.2f}, "
        f"{difference.high:+.2f}] | higher | "
        f"{sum(seconds) / 3:.0f} | 1.000 |"
    )
    assert "| all seven stages fused | 1,572,010 | 41,793,792 |" in text
    assert "Fusing the first three stages is more accurate than" in text
    for seed, top1 in enumerate(tops):
        assert f"| stages 1 to 3 fused | {seed} | {top1:.2f} |" in text


def test_the_report_is_the_same_every_time(reported):
    names = ("REPORT.md", "report.html")
    before = [(reported / name).read_bytes() for name in names]
    for name in names:
        (reported / name).unlink()
    report.build(reported, log=lambda line: None)
    assert [(reported / name).read_bytes() for name in names] == before


def test_the_command_of_a_study_can_be_typed(small, tmp_path, reported):
    """Also that of a user's study, whose file the report does not know."""
    text = (reported / "REPORT.md").read_text()
    assert (
        "efficientnetv2 study --study=fused --dataset=fashion_mnist --seeds=3 "
        f"--output_dir={reported}"
    ) in text
    made_up.write(tmp_path / "out", small)
    report.build(tmp_path / "out", log=lambda line: None)
    text = (tmp_path / "out/REPORT.md").read_text()
    line = next(s for s in text.splitlines() if "--study=" in s)
    words = line.split()
    path = words[2].removeprefix("--study=")
    assert path == str(tmp_path / "out/small/study.json")
    assert definition.load(path) == small
    given, _ = cli.parse(commands.load("study"), words[2:])
    assert given.output_dir == str(tmp_path / "out")


def test_the_page_needs_no_other_file(reported):
    page = (reported / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 3
    addresses = set(re.findall(r"https?://[^\"]*", page))
    # Names of SVG's formats, which nothing fetches.
    assert all(each.startswith("http://www.w3.org/") for each in addresses)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    # Pictures that the Markdown links are there.
    links = [
        line.split("](")[1].rstrip(")")
        for line in (reported / "REPORT.md").read_text().splitlines()
        if line.startswith("![")
    ]
    assert len(links) == 3
    assert all((reported / link).exists() for link in links)


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_mixed_results_are_not_reported(tmp_path, small):
    folder = made_up.write(tmp_path, small, seeds=2)
    path = folder.result("much", 1)
    original = path.read_text()
    _edit(path, lambda r: r["config"]["train"].update(lr_base=1.0))
    with pytest.raises(StudyError, match="(?s)much, seed 1.*train.lr_base"):
        report.load(tmp_path)
    path.write_text(original)
    _edit(path, lambda r: r["code"].update({"efficientnetv2/cli.py": "0"}))
    with pytest.raises(StudyError, match="efficientnetv2/cli.py"):
        report.load(tmp_path)
    path.write_text(original[:-5])
    with pytest.raises(StudyError, match="not valid JSON"):
        report.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(StudyError, match="no result of a study"):
        report.load(tmp_path)
    path.unlink()
    (analysis,) = report.load(tmp_path)
    assert analysis.missing() == 1
    assert curve(analysis.results["much", 0])[0] == sorted(
        curve(analysis.results["much", 0])[0]
    )
