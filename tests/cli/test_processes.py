"""Commands side by side, which do nothing but say that they ran."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tf_robust_sparse.cli import processes

ROOT = Path(__file__).parents[2]
SCRIPT = f"""
import os, pathlib, sys
folder, code, name = sys.argv[1:]
if os.environ["{processes.STARTED}"] == str(os.getppid()):
    pathlib.Path(folder, name).write_text(os.environ["TF_NUM_INTRAOP_THREADS"])
sys.exit(int(code))
"""


def test_groups_are_of_one_size_but_for_the_last():
    assert processes.groups(range(5), 5) == [[0], [1], [2], [3], [4]]
    assert processes.groups(range(10), 8) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert processes.groups([3, 4, 7], 2) == [[3, 4], [7]]
    assert processes.groups(range(3), 1) == [[0, 1, 2]]


@pytest.fixture
def command(tmp_path):
    def written(part, code=0):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT)
        return [sys.executable, "-S", "-E", str(path), str(tmp_path), str(code), part]

    return written


def test_every_command_is_run_with_one_thread_and_told_by_its_exit_code(command, tmp_path):
    told = []
    found = processes.run(
        [command("a"), command("b", 1), command("c")],
        at_once=1,
        begins=told.append,
        ends=lambda number, code: told.append((number, code)),
    )
    assert found == [0, 1, 0] and told == [0, (0, 0), 1, (1, 1), 2, (2, 0)]
    assert (tmp_path / "c").read_text() == "1"


def test_one_waits_for_those_that_it_needs(command):
    told = []
    commands = [command("a"), command("b"), command("c", 1), command("d")]
    processes.run(commands, 1, after=[[2, 3], [], [], [2]], ends=lambda number, code: told.append(number))
    assert told == [1, 2, 3, 0]


def test_an_interrupted_one_ends_all(command):
    with pytest.raises(KeyboardInterrupt):
        processes.run([command("a", 130), [sys.executable, "-S", "-E", "-c", "import time; time.sleep(60)"]])


WAITING = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("it", "tf_robust_sparse/cli/processes.py")
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
        env={**os.environ, processes.STARTED: str(os.getpid())},
    )
    if closes:
        started.stdin.close()
    assert started.wait(30) == code
    assert started.stderr.read() == b""
    for stream in (started.stdin, started.stderr):
        stream.close()


def test_a_process_that_was_started_by_hand_does_not_wait_for_its_standard_input():
    environment = {name: value for name, value in os.environ.items() if name != processes.STARTED}
    command = [sys.executable, "-c", WAITING, "0.2"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, timeout=30).returncode == 0
