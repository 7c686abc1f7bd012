"""Trials in processes of their own, with a script that does nothing but say what it was asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tf_robust_sparse.cli import lottery_processes

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, pathlib, sys
part = sys.argv[-1].partition("=")[2]
words = sys.argv[1:] + [os.environ["TF_NUM_INTRAOP_THREADS"]] * (os.environ["{started}"] == str(os.getppid()))
pathlib.Path(sys.argv[1], part).write_text(" ".join(words[1:]))
sys.exit({codes}.get(part, 0))
"""


def test_groups_are_of_one_size_but_for_the_last():
    assert lottery_processes.groups(range(5), 5) == [[0], [1], [2], [3], [4]]
    assert lottery_processes.groups(range(10), 8) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert lottery_processes.groups([3, 4, 7], 2) == [[3, 4], [7]]
    assert lottery_processes.groups(range(3), 1) == [[0, 1, 2]]


@pytest.fixture
def script(tmp_path):
    def write(**codes):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(codes=codes.get("codes", {}), started=lottery_processes.STARTED))
        return [sys.executable, str(path), str(tmp_path), "--force", "--trials=3"]

    return write


def test_each_part_is_run_with_one_thread_and_goes_on_with_what_is_there(script, tmp_path):
    lottery_processes.run([[0, 1], [2]], script())
    for part in ("0,1", "2"):
        expected = f"--force --trials=3 --noforce --resume --only_trials={part} 1"
        assert (tmp_path / part).read_text() == expected


@pytest.mark.parametrize(("code", "error"), [(1, ValueError), (130, KeyboardInterrupt)])
def test_a_part_that_fails_is_told_when_the_others_have_ended(code, error, script, tmp_path):
    with pytest.raises(error):
        lottery_processes.run([[0], [1]], script(codes={"0": code}))
    assert (tmp_path / "1").is_file()


WAITING = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("it", "tf_robust_sparse/cli/lottery_processes.py")
it = importlib.util.module_from_spec(spec)
spec.loader.exec_module(it)
it.end_with_parent()
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize(("seconds", "closes", "code"), [(60, True, 130), (0.2, False, 0)])
def test_a_process_ends_with_the_one_that_started_it_and_not_before(seconds, closes, code):
    started = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(seconds)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, lottery_processes.STARTED: str(os.getpid())},
    )
    if closes:
        started.stdin.close()
    assert started.wait(30) == code
    assert started.stderr.read() == b""
    for stream in (started.stdin, started.stderr):
        stream.close()


def test_a_process_that_was_started_by_hand_does_not_wait_for_its_standard_input():
    environment = {name: value for name, value in os.environ.items() if name != lottery_processes.STARTED}
    command = [sys.executable, "-c", WAITING, "0.2"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, timeout=30).returncode == 0
