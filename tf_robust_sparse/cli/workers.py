"""Several machines that train together: who waits for whom, Ctrl-C at any time, and a line when one is lost."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from absl import flags

from tf_robust_sparse.cli.command_line import BadFlag, BadInput, cleanups

FLAGS = flags.FLAGS
_SECONDS = 15.0  # between two lines of a worker that waits
_GRACE = 2.0  # what Python gets to end after Ctrl-C before the process is ended
# How operations fail when another worker does not answer any more.
_LOST = (
    *(tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.InternalError),
    *(tf.errors.CancelledError, tf.errors.FailedPreconditionError, tf.errors.OutOfRangeError, tf.errors.UnknownError),
)


class Worker(NamedTuple):
    """One process of the cluster."""

    name: str
    address: str


class Cluster(NamedTuple):
    """All workers, the one that writes first, and the place of this process among them."""

    workers: tuple[Worker, ...]
    place: int

    @property
    def others(self) -> list[Worker]:
        """All but this one."""
        return [worker for place, worker in enumerate(self.workers) if place != self.place]


def cluster() -> Cluster:
    """Returns the cluster of the environment variable TF_CONFIG.

    Raises:
        BadFlag: if it does not say what it should.
    """
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        jobs = {name: list(config["cluster"].get(name, ())) for name in ("chief", "worker")}
        task = config.get("task", {})
        place = int(task.get("index", 0)) + (len(jobs["chief"]) if task.get("type", "worker") == "worker" else 0)
        workers = tuple(Worker(f"{job} {index}", text) for job in jobs for index, text in enumerate(jobs[job]))
        for worker in workers:
            _split(worker.address)
        return Cluster(workers, range(len(workers))[place])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BadFlag(
            "--strategy=multi_worker: expected TF_CONFIG in the environment, with the host:port of every worker under "
            f"cluster and which of them this is under task. Received: {os.environ.get('TF_CONFIG')} ({error!r})"
        ) from error


def is_chief() -> bool:
    """Whether this process writes: of several workers the first."""
    return FLAGS.strategy != "multi_worker" or cluster().place == 0


def connect() -> tf.distribute.Strategy:
    """Waits until every worker is there and returns the strategy of all of them.

    Raises:
        BadFlag: if the port of this worker is taken.
    """
    found = cluster()
    _obey_interrupts()
    if not is_chief():
        print(f"Worker:    {found.place} of {len(found.workers)}; {found.workers[0].name} writes", flush=True)
    with _listening(found.workers[found.place]):
        _await(found.others)
    return tf.distribute.MultiWorkerMirroredStrategy()


@contextlib.contextmanager
def about_the_lost() -> Iterator[None]:
    """Turns what TensorFlow says when a worker is gone into a line that names it and what to do.

    Raises:
        BadInput: naming the workers that do not answer, or the flag.
    """
    try:
        yield
    except _LOST as error:
        if FLAGS.strategy != "multi_worker":
            raise
        time.sleep(1)  # in which a process that is ending ends
        found = cluster()
        lost = [worker for worker in found.others if not _answers(worker)]
        if not lost:  # one that hangs answers, and TensorFlow may name it
            named = {f"{job} {task}" for job, task in re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", str(error))}
            lost = [worker for worker in found.others if worker.name in named]
        if not lost:
            raise
        raise BadInput(
            f"{_names(lost)} does not answer any more; no finished epoch is lost, run the same command with --resume "
            "on every worker to go on"
        ) from error


def _await(others: list[Worker]) -> None:
    """Waits until each of the others has answered once, and says for whom."""
    missing, begun = list(others), time.monotonic()
    told = begun - _SECONDS
    while missing := [worker for worker in missing if not _answers(worker)]:
        now = time.monotonic()
        if now - told >= _SECONDS:
            told = now
            print(f"Waiting:   {now - begun:.0f} s for {_names(missing)}; Ctrl-C ends this", flush=True)
        time.sleep(0.2)


@contextlib.contextmanager
def _listening(worker: Worker) -> Iterator[None]:
    """Answers the others at the address of this worker, where TensorFlow will do so in a moment."""
    _, port = _split(worker.address)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise BadFlag(
                f"--strategy=multi_worker: expected a free port at {worker.address}, the address of this worker in "
                f"TF_CONFIG. Received: {error.strerror}"
            ) from error
        listener.listen()
        yield


def _names(workers: list[Worker]) -> str:
    return ", ".join(f"{worker.name} ({worker.address})" for worker in workers)


def _answers(worker: Worker) -> bool:
    try:
        with socket.create_connection(_split(worker.address), timeout=2):
            return True
    except OSError:
        return False


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _obey_interrupts() -> None:
    """Ends the process on Ctrl-C even while TensorFlow waits for another worker, where Python does not look."""
    if threading.current_thread() is not threading.main_thread():
        return
    ours, signals = socket.socketpair()
    signals.setblocking(False)
    before = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    ended = threading.Event()

    def watch() -> None:
        while signal.SIGINT not in ours.recv(64):
            if ended.is_set():
                return
        if not ended.wait(_GRACE):
            print("error: interrupted while waiting for another worker; --resume goes on", file=sys.stderr, flush=True)
            os._exit(130)

    def restore() -> None:
        signal.set_wakeup_fd(before)
        ended.set()
        signals.send(b"\0")
        watcher.join()
        ours.close()
        signals.close()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    cleanups.callback(restore)
