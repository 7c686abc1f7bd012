"""One process at a time writes to a directory; what killed processes leave is in nobody's way."""

import json
import os
import platform
import subprocess

import pytest

from tf_robust_sparse.cli import command_line, run_lock


@pytest.fixture(autouse=True)
def _released():
    yield
    command_line.cleanups.close()


def write(directory, **changes):
    """Writes the lock of this process, with some of its words changed."""
    run_lock.take(directory, "--output_dir=x")
    owner = json.loads((directory / run_lock.NAME).read_text())
    command_line.cleanups.close()
    directory.mkdir(exist_ok=True)
    (directory / run_lock.NAME).write_text(json.dumps({**owner, **changes}))
    return owner


def test_says_who_and_leaves_nothing(tmp_path):
    run_lock.take(tmp_path / "a" / "b", "--output_dir=x")
    run_lock.take(tmp_path / "a" / "b", "--output_dir=x")  # which this process has
    owner = json.loads((tmp_path / "a" / "b" / ".lock").read_text())
    assert (owner["host"], owner["process"]) == (platform.node(), os.getpid())
    assert owner["started"] and owner["time"]
    command_line.cleanups.close()
    assert not list(tmp_path.iterdir())


def test_directories_that_are_used_stay(tmp_path):
    run_lock.take(tmp_path / "a" / "b", "--output_dir=x")
    (tmp_path / "a" / "b" / "network.keras").touch()
    command_line.cleanups.close()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["network.keras"]


def test_one_of_a_running_process_is_respected(tmp_path):
    write(tmp_path)
    with pytest.raises(command_line.BadFlag, match=rf"^--output_dir=x is in use by process {os.getpid()} on .* since"):
        run_lock.take(tmp_path, "--output_dir=x")
    assert (tmp_path / ".lock").exists()


def test_one_of_another_host_is_for_the_user_to_remove(tmp_path):
    write(tmp_path, host="elsewhere", process=1)
    with pytest.raises(command_line.BadFlag, match=rf"on elsewhere since .*remove {tmp_path}/\.lock$"):
        run_lock.take(tmp_path, "--output_dir=x")


@pytest.mark.parametrize("words", ["", "{", "[]"])
def test_one_that_says_nothing_is_for_the_user_to_remove(words, tmp_path):
    (tmp_path / ".lock").write_text(words)
    with pytest.raises(command_line.BadFlag, match="remove it"):
        run_lock.take(tmp_path, "--output_dir=x")


def test_one_of_a_process_that_ended_is_taken_over(tmp_path):
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        write(tmp_path, process=process.pid)  # not waited for: a zombie
        run_lock.take(tmp_path, "x")
    write(tmp_path / "other", process=process.pid)
    run_lock.take(tmp_path / "other", "x")


def test_one_of_an_earlier_process_of_the_same_number_is_taken_over(tmp_path):
    write(tmp_path, started="an earlier boot 1")
    run_lock.take(tmp_path, "x")
    assert json.loads((tmp_path / ".lock").read_text())["started"] != "an earlier boot 1"


def test_a_lock_that_took_the_place_of_a_stale_one_stays(tmp_path):
    owner = write(tmp_path)
    run_lock._remove_stale(tmp_path / ".lock", {**owner, "process": 1})
    assert json.loads((tmp_path / ".lock").read_text()) == owner
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
