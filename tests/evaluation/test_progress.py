"""Rates are those of the work, a log file gets a line now and then, a terminal one bar."""

import io
import sys

import pytest

from tf_robust_sparse.evaluation import progress
from tf_robust_sparse.evaluation.progress import Progress


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_file_gets_lines_at_intervals_and_one_at_the_end(clock, capsys):
    with Progress("PGD", 400, shown=True) as bar:
        for _ in range(20):  # two seconds each
            clock[0] += 2
            bar.advance(20, robust=0.5)
    shown = capsys.readouterr()
    assert shown.out == "" and "\r" not in shown.err
    assert shown.err.splitlines() == [
        "PGD: 300/400 images, 10 images/s, 50.00 % robust, 0:00:10 left",
        "PGD: 400/400 images, 10 images/s, 50.00 % robust, 0:00:40",
    ]


def test_one_batch_has_a_rate_too_and_skipped_images_have_none(clock, capsys):
    with Progress("PGD", 300, shown=True) as bar:
        clock[0] += 50
        bar.advance(100)
        bar.skip(90)  # they have fallen in the first restart
        clock[0] += 5
        bar.advance(10)
        bar.skip(100)
    assert capsys.readouterr().err.splitlines() == [
        "PGD: 100/300 images, 2 images/s, 0:01:40 left",
        "PGD: 110/110 images, 2 images/s, 0:00:55",
    ]
    with Progress("slow", 3, shown=True) as bar:
        clock[0] += 40
        bar.advance(1)
    assert capsys.readouterr().err.startswith("slow: 1/3 images, 40 s/image, 0:01:20 left\n")


def test_nothing_is_said_of_no_work_or_of_what_the_caller_tells(clock, capsys):
    with Progress("nothing", 5, shown=True) as bar:
        bar.skip(5)
    with Progress("told", 5, shown=True, leaves=False) as bar:
        bar.advance(5)
    with pytest.raises(ValueError), Progress("failed", 5, shown=True):
        raise ValueError
    with Progress("hidden", 5, shown=False) as bar:
        clock[0] += 100
        bar.advance(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_the_rate_since_the_start(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    ticks = iter(range(0, 1000, 10))  # each look at the clock comes ten seconds later
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(ticks)))
    with Progress("PGD", 64, shown=True) as bar:
        bar.skip(14)
        bar.advance(50, robust=0.25)
    last = screen.getvalue().split("\r")[-1]
    assert last.startswith("PGD: 100%") and "50/50" in last and "robust=25.00%" in last
    rate = float(last.partition(" images/s")[0].rpartition(" ")[2])
    assert 2 < rate < 6  # 50 images in ten seconds, and not in no time
