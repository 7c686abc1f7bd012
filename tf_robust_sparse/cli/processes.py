"""Command lines side by side, each in a process of its own, which end with the one that starts them."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

STARTED = "TF_ROBUST_SPARSE_STARTED_BY"  # set in the environment of a process that `run` starts
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
_INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)


def groups(trials: Sequence[int], processes: int) -> list[list[int]]:
    """Returns the trials in at most so many groups of neighbors, of one size but for the last."""
    size = -(-len(trials) // processes)
    return [list(trials[first : first + size]) for first in range(0, len(trials), size)]


def run(
    commands: Sequence[Sequence[str]],
    at_once: int | None = None,
    logs: Sequence[Path] | None = None,
    one_thread: bool = True,
    devices: Sequence[str] = (),
    after: Sequence[Collection[int]] = (),
    begins: Callable[[int], None] = lambda number: None,
    follows: Callable[[int], Sequence[str] | None] = lambda number: None,
    ends: Callable[[int, int], None] = lambda number, code: None,
) -> list[int]:
    """Runs command lines and returns their exit codes.

    Args:
        commands: The command lines.
        at_once: How many run side by side; `None` for all.
        logs: Files that the output of each is added to; `None` for that of this process.
        one_thread: Whether each of them computes with one thread, which uses all cores best where they are many.
        devices: Numbers of GPUs; each process gets one that is free, so there are at least `at_once` of them.
        after: For each, the numbers of those that must end before it begins.
        begins: Called with the number of one that begins.
        follows: Called with the number of one that has ended well; returns what runs next in its place, if anything.
        ends: Called with the number of one that has ended, and its exit code, of the last in its place.

    Raises:
        KeyboardInterrupt: if one of them, or this process, is interrupted; the others end, too.
    """
    environment = {**os.environ, STARTED: str(os.getpid()), "PYTHONUNBUFFERED": "1"}  # errors come last in a log
    if one_thread:
        environment |= _ONE_THREAD
    codes: dict[int, int] = {}
    running: dict[int, subprocess.Popen] = {}
    followed: set[int] = set()
    free = list(devices)
    taken: dict[int, str] = {}
    waiting = list(range(len(commands)))
    with contextlib.ExitStack() as stack:  # which ends and waits for every process

        def start(number: int, command: Sequence[str]) -> None:
            if number in taken:
                environment["CUDA_VISIBLE_DEVICES"] = taken[number]
            if logs:
                logs[number].parent.mkdir(parents=True, exist_ok=True)
            with logs[number].open("ab") if logs else contextlib.nullcontext() as output:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment
                )
            stack.enter_context(process)
            stack.callback(process.terminate)  # does nothing where it has ended
            running[number] = process

        while waiting or running:
            ready = [number for number in waiting if not after or all(other in codes for other in after[number])]
            for number in ready[: (at_once or len(commands)) - len(running)]:
                waiting.remove(number)
                begins(number)
                if free:
                    taken[number] = free.pop(0)
                start(number, commands[number])
            for number, process in list(running.items()):
                code = process.poll()
                if code == 0 and number not in followed:
                    followed.add(number)
                    if (command := follows(number)) is not None:
                        start(number, command)
                        continue
                if code is not None:
                    del running[number]
                    free += [taken.pop(number)] if number in taken else []
                    codes[number] = code
                    if code in _INTERRUPTED:
                        raise KeyboardInterrupt
                    ends(number, code)
            time.sleep(0.05)
    return [codes[number] for number in range(len(commands))]


def end_with_parent() -> None:
    """Has this process end when the one that started it is gone, which holds the other end of its standard input.

    Does nothing in a process that `run` did not start.
    """
    if os.environ.pop(STARTED, None) is None:
        return

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin.read(), which holds a lock that the end of the interpreter needs
            pass
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()
