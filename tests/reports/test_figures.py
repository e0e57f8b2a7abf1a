"""The pictures of README and docs come from results/ alone."""

import importlib.util
import pathlib

from efficientnetv2.study import definition
from tests.study.conftest import write_made_up

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_pictures_are_those_of_the_results(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "figures", ROOT / "docs/figures.py"
    )
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    figures.STUDIES = tmp_path
    study = definition.load("regularization")
    write_made_up(tmp_path, study)
    drawn = figures.plots.to_svg(figures.progressive_picture())
    assert drawn == figures.plots.to_svg(figures.progressive_picture())
    for words in ("stage 1: ", "minutes of training", "fixed size"):
        assert words in drawn
    assert drawn.count("<image") == 4 * figures.SHOWN
    assert (figures.IMAGES / "progressive.svg").exists()
