"""Trials side by side, each in a process of one thread: what uses the cores of a machine best for small networks.

Threads that share the products of 60 images by 300 units wait for each other; processes do not. A process runs the
command again with --only_trials and writes into the same tree, in which every trial has a directory of its own.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Sequence

STARTED = "TF_ROBUST_SPARSE_STARTED_BY"  # set in the environment of a process that `run` starts
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def groups(trials: Sequence[int], processes: int) -> list[list[int]]:
    """Returns the trials in at most so many groups of neighbours, of one size but for the last."""
    size = -(-len(trials) // processes)
    return [list(trials[first : first + size]) for first in range(0, len(trials), size)]


def run(parts: Sequence[Sequence[int]], command: Sequence[str]) -> None:
    """Runs a command line once for each part, side by side, and waits for all.

    Raises:
        ValueError: if one of them fails; the others end first.
        KeyboardInterrupt: if one of them, or this process, is interrupted.
    """
    processes: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:  # which waits for every process at its end
        for part in parts:
            own = ["--noforce", "--resume", f"--only_trials={','.join(map(str, part))}"]
            environment = {**os.environ, **_ONE_THREAD, STARTED: str(os.getpid())}
            processes.append(
                stack.enter_context(subprocess.Popen([*command, *own], stdin=subprocess.PIPE, env=environment))
            )
            stack.callback(processes[-1].terminate)  # of which one that has ended knows nothing
        codes = [process.wait() for process in processes]
    if any(code < 0 or code == 130 for code in codes):
        raise KeyboardInterrupt
    if any(codes):
        raise ValueError(f"expected every trial to end well. Received: exit codes {codes}; see above")


def end_with_parent() -> None:
    """Has this process end when the one that started it is gone, which holds the other end of its standard input.

    Does nothing in a process that `run` did not start.
    """
    if STARTED not in os.environ:
        return

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin.read(), which holds a lock that the end of the interpreter needs
            pass
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()
