"""The progress bar: what it says, how wide it is, and where."""

import io
import math

import pytest

from efficientnetv2 import config as config_lib
from efficientnetv2.formatting import format_seconds, wrapped
from efficientnetv2.progress import Progress


def shown(config, first_step=0, stream=None):
    """Returns the progress of a run, in memory by default."""
    plan = config_lib.run_plan(config)
    return Progress(config, plan, first_step, stream=stream or io.StringIO())


@pytest.fixture
def config(tiny_config, small_data):
    return tiny_config(
        "train.stages=2,train.epochs=2,train.isize=20,data.ibase=10,"
        "train.isize_rule=paper"
    )


def test_progress_estimates_by_pixels(config):
    # Two stages of six steps, of 10 and 20 pixels.
    with shown(config, 3) as progress:
        progress.window = [(2, 0.0), (3, 0.1)]
        assert progress.images_per_second() == pytest.approx(320)
        # 3 steps of 0.1 s, then 6 of four times the pixels.
        assert progress.seconds_left(6) == pytest.approx(3 * 0.1)
        assert progress.seconds_left() == pytest.approx(3 * 0.1 + 6 * 0.4)
    assert format_seconds(3723) == "1:02:03"
    assert format_seconds(math.nan) == "?"


@pytest.mark.parametrize("columns", [20, 40, 64, 80, 200])
def test_a_description_fits_its_columns(config, columns):
    with shown(config) as progress:
        progress.add({"loss": 12.3456, "top1": 1.0})
        progress.read()
        progress.window = [(0, 0.0), (1, 0.0001)]
        text = progress.describe(columns)
    assert len(text) <= columns and "12.3" in text and "px" in text
    assert ("stage ends in" in text) == (columns == 200)
    assert ("images/s" in text) == (columns >= 64)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_long_lines_are_wrapped_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = f"error: {'word ' * 20}end.\n  efficientnetv2 {'--flag ' * 9}"
    *sentence, command = wrapped(text, Terminal()).split("\n")
    assert max(map(len, sentence)) <= 40 and sentence[1].startswith("  word")
    assert command == text.split("\n")[1]
    assert wrapped(text, io.StringIO()) == text


def test_a_terminal_gets_one_line_that_is_redrawn(config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    with shown(config, stream=terminal) as progress:
        for step in range(progress.total):
            progress.enter(step)
            progress.last_shown = -math.inf
            progress.add({"loss": 1.0, "top1": 0.5})
        progress.log("between")
    lines = terminal.getvalue().split("\n")
    assert "between" in "".join(lines)
    for line in lines:
        for part in line.split("\r"):
            assert len(part.rstrip()) <= 80
    drawn = [part for part in lines[-2].split("\r") if "%" in part]
    assert drawn and "100%" in drawn[-1]
    assert "\x1b[32m" not in terminal.getvalue()  # green
