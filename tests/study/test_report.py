"""A report that is a function of the JSON files."""

import json
import re

import pytest

from efficientnetv2 import cli, commands
from efficientnetv2.reports import study as report
from efficientnetv2.study import analysis, definition, records
from efficientnetv2.study.records import StudyError
from tests.study.conftest import write_made_up

TPU = {
    "estimated_cycles": 1160023,
    "floating_point_operations": 1.75e9,
    "bytes_accessed": 1.96e8,
}
CUDA = {
    "floating_point_operations": 1.6e9,
    "bytes_accessed_unfused": 9.9e8,
    "depthwise_convolutions": 8,
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder with two made-up studies and their report."""
    output = tmp_path_factory.mktemp("output")
    gains = {"none": -4, "progressive_adaptive": 1.5, "random_fixed": -2}
    write_made_up(output, definition.load_study("regularization"), gains)
    folder = write_made_up(
        output, definition.load_study("fused"), {"fused_3": 1}
    )
    costs = {
        **{"batch_size": 32, "image_size": 32},
        "environment": {"topology": "v5e:1x1"},
        "arms": {
            f"fused_{k}": {"tpu": TPU, "cuda": CUDA} for k in (0, 3, 5, 7)
        },
    }
    (folder / report.COSTS).write_text(json.dumps(costs))
    report.build(output, log=lambda line: None)
    return output


def test_every_number_is_of_the_json_files(reported):
    text = (reported / "REPORT.md").read_text()
    found = analysis.load_results(reported / "fused")
    top1 = found.top1("fused_3")
    low, high = top1.of_one_more()
    row = next(s for s in text.splitlines() if s.startswith("| stages 1 to 3"))
    assert row == (
        f"| stages 1 to 3 fused | 1 | {top1.mean:.2f} | {top1.sd:.2f} | 5 | "
        f"{found.difference('fused_3', 'fused_0')} | {low:.2f} to {high:.2f} | "
        "+10.0 | 40 | 100 | 120 |"
    )
    assert "| all seven stages fused | 1,021 | 1,000,000 | 108.4" in text
    assert "| 343.6 | 1,160 | 1.75 | 196 | 1.60 | 990 | 8 |" in text
    [answer] = [s for s in text.splitlines() if "fusing none, in the" in s]
    assert "| **supported** |" in answer
    # The regime, and what was tried.
    assert "10.0 points more accurate on its training images" in text
    tuned = "| fixed size, fixed regularization | 100% | 80.12 | **80.25** |"
    assert tuned in text
    assert "Incomplete" not in text


def test_the_report_is_the_same_every_time(reported):
    names = ("REPORT.md", "report.html")
    before = [(reported / name).read_bytes() for name in names]
    report.build(reported, log=lambda line: None)
    assert [(reported / name).read_bytes() for name in names] == before


def test_commands_of_the_report_can_be_typed(reported):
    text = (reported / "REPORT.md").read_text()
    typed = re.findall(r"^efficientnetv2 study (.*)$", text, re.M)
    assert len(typed) == 4
    for line in typed:
        given, _ = cli.parse(commands.load_command("study"), line.split())
        if given.arm:
            assert given.output_dir == str(reported)
            # A seed that the study does not use.
            assert given.seed == 12
            definition.load_study(given.study).arm(given.arm)


def test_the_page_needs_no_other_file(reported):
    page = (reported / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 5
    text = (reported / "REPORT.md").read_text()
    assert page.count("<table>") == len(re.findall("^[|] :---", text, re.M))
    addresses = set(re.findall(r"https?://[^\"]*", page))
    # Names of SVG's formats, which nothing fetches.
    assert all(each.startswith("http://www.w3.org/") for each in addresses)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    # Pictures that the Markdown links are there.
    links = re.findall(r"^!\[.*\]\((.*)\)$", text, re.M)
    assert len(links) == 5
    assert all((reported / link).exists() for link in links)


def test_missing_and_broken_parts_are_reported(tmp_path, small):
    with pytest.raises(StudyError, match="no results of a study"):
        report.build(tmp_path)
    folder = write_made_up(tmp_path, small, seeds=4)
    report.build(tmp_path, log=lambda line: None)
    assert "4 runs have no result" in (tmp_path / "REPORT.md").read_text()
    path = folder / records.RESULTS
    path.write_text(path.read_text()[:-5])
    with pytest.raises(StudyError, match="not valid JSON"):
        report.build(tmp_path)
