"""Kills at writes: in this process, and as a program that sends itself a signal.

    python -m tests.cli.drill NUMBER SIGNAL run_scripts/SCRIPT.py ARGUMENTS

runs the script and sends SIGNAL to itself at its NUMBER-th write, after the content is on the disk and before it gets
its name. In this process `kill_at` raises what nothing catches and has no file written or removed from there on, which
is what a killed process leaves.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys

import pytest

from tf_robust_sparse.certify import table
from tf_robust_sparse.cli import run_lock
from tf_robust_sparse.saving import atomic


class Killed(BaseException):
    """The end of a process."""


@contextlib.contextmanager
def kill_at(name, number=1):
    """Ends what runs inside at the `number`-th write of a path that ends in `name`, before it takes place."""
    put, append, remove, release, written, dead = atomic._put, table.append, atomic._remove, run_lock._release, [], []

    def look(path):
        if path.as_posix().endswith(name):
            written.append(path)
        if dead or len(written) == number:
            dead.append(path)
            raise Killed(f"{path}")

    def watched_put(new, path):
        look(path)
        put(new, path)

    def watched_append(path, values):
        try:
            look(path)
        except Killed:
            with path.open("a") as file:
                file.write(str(values[0]))  # a part of the line
            raise
        append(path, values)

    def watched_remove(path):
        if not dead:
            remove(path)

    def watched_release(held):
        if not dead:
            release(held)
            return
        run_lock._held.remove(held)
        owner = json.loads(held.file.read_text())
        held.file.write_text(json.dumps({**owner, "process": _ended()}))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(atomic, "_put", watched_put)
        patched.setattr(table, "append", watched_append)
        patched.setattr(atomic, "_remove", watched_remove)
        patched.setattr(run_lock, "_release", watched_release)
        with pytest.raises(Killed):
            yield
    assert dead


def survive(run, kills):
    """Calls `run` until it ends, having killed it once at each of `kills`, (name, number) of a write."""
    for name, number in kills:
        with kill_at(name, number):
            run()
    return run().expect()


def _ended():
    with subprocess.Popen(["true"]) as process:
        return process.pid


def main(number, signal, script, *arguments):
    """Runs the script and sends `signal` to this process at a write."""
    put, append, count = atomic._put, table.append, [0]

    def look():
        count[0] += 1
        if count[0] == int(number):
            os.kill(os.getpid(), int(signal))

    def watched_put(new, path):
        look()
        put(new, path)

    def watched_append(path, values):
        look()
        append(path, values)

    atomic._put, table.append = watched_put, watched_append
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
