"""The pictures of README and docs come from results/ alone."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_pictures_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location(
        "figures", ROOT / "docs/figures.py"
    )
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    drawn = figures.plots.to_svg(figures.progressive_picture())
    kept = (figures.IMAGES / "progressive.svg").read_text()
    words = [f"stage {k}: {size} px" for k, size in enumerate((28, 42, 56), 1)]
    for text in (*words, "seconds of training on one core"):
        assert text in drawn and text in kept
