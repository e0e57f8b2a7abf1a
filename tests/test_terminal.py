"""A whole run in a terminal of 80 x 24, as its user sees it."""

import dataclasses
import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pyte
import pytest

from tests.conftest import TINY, write_photos

pytestmark = pytest.mark.slow

ROWS, COLUMNS = 24, 80
OVERRIDES = (
    "train.epochs=12,train.stages=4,data.ibase=12,model.survival_prob=0.8,"
    "train.micro_batch_size=16,eval.every_epochs=2"
)


def run_in_terminal(
    command: list[str], folder: pathlib.Path, status: int = 0
) -> bytes:
    """Returns what a command writes into a terminal, by its exit status."""
    master, slave = pty.openpty()
    size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR", "TF_CPP_MIN_LOG_LEVEL")
    }
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=variables | {"TERM": "xterm-256color"},
    ) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # How a terminal ends on Linux.
                part = b""
            if not part:
                break
            written += part
    os.close(master)
    assert process.returncode == status, written.decode(errors="replace")
    return written


def lines_of(written: bytes) -> list[str]:
    """Returns the lines that are left when all is written.

    The screen is wider than the terminal was: what the terminal would have
    wrapped is one long line.
    """
    screen = pyte.HistoryScreen(5 * COLUMNS, ROWS, history=5_000)
    pyte.ByteStream(screen).feed(written)
    above = [
        "".join(line[k].data for k in range(screen.columns))
        for line in screen.history.top
    ]
    lines = [line.rstrip() for line in [*above, *screen.display]]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def written(tmp_path_factory, source):
    """What a small run writes into a terminal, from data to export."""
    folder = tmp_path_factory.mktemp("terminal")
    # No image is in two splits.
    splits = {
        split: dataclasses.replace(source, images=source.images + np.uint8(k))
        for k, split in enumerate(("train", "minival", "eval"))
    }
    write_photos(folder / "photos", splits.get)
    return run_in_terminal(
        [
            *(sys.executable, "-m", "efficientnetv2.main"),
            *("--dataset=photos", "--recipe=fashion_mnist"),
            *("--model_dir=runs/photos", f"--hparam_str={TINY},{OVERRIDES}"),
        ],
        folder,
    )


def test_no_line_is_too_long_or_printed_twice(written):
    lines = lines_of(written)
    assert [line for line in lines if len(line) > COLUMNS] == []
    assert sorted(lines) == sorted(set(lines))
    text = "\n".join(lines)
    for words in ("Stage 4 of 4", "best so far", "Next:", "report.html"):
        assert words in text


def test_libraries_say_nothing(written):
    text = written.decode()
    for words in ("WARNING", "retracing", "Assets written", "INFO:", "oneDNN"):
        assert words not in text
    assert "/tmp/" not in text.replace(sys.executable, "")


def test_the_bar_fits_and_is_redrawn(written):
    drawn = [
        re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", part)
        for part in re.split(r"[\r\n]+", written.decode())
    ]
    bars = [part for part in drawn if "%|" in part]
    assert len(bars) > 3
    assert max(map(len, bars)) <= COLUMNS
    assert "images/s" in bars[-1] or "Evaluating" in bars[-1]
    assert "\x1b[32m" in written.decode()


def test_mistakes_and_tables_break_between_words(tmp_path):
    program = [sys.executable, "-m", "efficientnetv2"]
    for arguments, status, word in (
        (["trian"], 2, "benchmark"),
        (["predict", "--model=photo", "a.png"], 2, "hparams/models/"),
        (["data", "--dataset=cars"], 0, "Categorization"),
    ):
        lines = lines_of(run_in_terminal(program + arguments, tmp_path, status))
        assert max(map(len, lines)) <= COLUMNS
        assert any(word in line for line in lines)
