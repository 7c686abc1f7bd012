"""What a worker says while it waits and when another one is lost, and that it ends on Ctrl-C."""

import hashlib
import json
import os
import signal
import socket
import threading
import time

import pytest
import tensorflow as tf
from absl import flags

from tests.cli.conftest import TRAIN
from tests.training.cluster import free_ports
from tf_robust_sparse.cli import command_line, workers


@pytest.fixture
def cluster(parse, monkeypatch):
    """Makes this process a worker of a cluster at ports of this machine."""

    def configured(index, kind="worker", number=3):
        ports = [f"127.0.0.1:{port}" for port in free_ports(number)]
        machines = {"worker": ports} if kind == "worker" else {"chief": ports[:1], "worker": ports[1:]}
        task = {"type": kind, "index": index}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": machines, "task": task}))
        parse(TRAIN, "--strategy=multi_worker")
        return workers.cluster()

    yield configured
    command_line.cleanups.close()


@pytest.mark.parametrize("kind, index, place", [("worker", 0, 0), ("worker", 2, 2), ("chief", 0, 0)])
def test_the_first_writes(kind, index, place, cluster):
    found = cluster(index, kind)
    assert found.place == place and workers.is_chief() == (place == 0)
    assert [worker.name for worker in found.workers][:1] == [f"{kind} 0"] and len(found.others) == 2


@pytest.mark.parametrize(
    "config", ["", "[]", '{"cluster": {"worker": ["a"]}}', '{"cluster": {}, "task": {"index": 1}}']
)
def test_a_configuration_that_says_something_else(config, parse, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(
        command_line.BadFlag, match="expected TF_CONFIG in the environment, with the host:port of every"
    ):
        workers.cluster()


def test_a_worker_that_waits_says_for_whom(cluster, monkeypatch, capsys):
    found = cluster(1)
    answers = {found.workers[0]: [False, True], found.workers[2]: [False] * 4 + [True]}
    monkeypatch.setattr(workers, "_answers", lambda worker: answers[worker].pop(0))
    monkeypatch.setattr(workers, "_SECONDS", 0.3)
    workers._await(found.others)
    first, *later = capsys.readouterr().out.splitlines()
    assert (
        first
        == f"Waiting:   0 s for worker 0 ({found.workers[0].address}), worker 2 ({found.workers[2].address}); "
        + ("Ctrl-C ends this")
    )
    assert later and all("worker 2 (" in line and "worker 0 (" not in line for line in later)


def test_a_worker_answers_while_it_waits_and_its_port_is_its_own(cluster):
    found = cluster(1)
    mine = found.workers[1]
    with workers._listening(mine):
        assert workers._answers(mine) and not workers._answers(found.workers[0])
    with socket.socket() as other:
        other.bind(("", workers._split(mine.address)[1]))
        other.listen()
        with pytest.raises(command_line.BadFlag, match=f"a free port at {mine.address}"), workers._listening(mine):
            pass


def test_a_lost_worker_is_named(cluster):
    found = cluster(0)
    one, other = found.others
    with (
        workers._listening(one),
        pytest.raises(
            command_line.BadInput, match=rf"^worker 2 \({other.address}\) does not .*--resume on every worker"
        ),
        workers.about_the_lost(),
    ):
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: ...")
    hangs = tf.errors.AbortedError(None, None, "from /job:worker/replica:0/task:0: heartbeat of /job:worker/task:1")
    with workers._listening(one), workers._listening(other):
        with pytest.raises(command_line.BadInput, match=rf"^worker 1 \({one.address}\) "), workers.about_the_lost():
            raise hangs
        with pytest.raises(tf.errors.InternalError), workers.about_the_lost():  # which has another cause
            raise tf.errors.InternalError(None, None, "CUDA")
    flags.FLAGS.strategy = "none"
    with pytest.raises(tf.errors.AbortedError), workers.about_the_lost():
        raise hangs


def test_ctrl_c_ends_what_python_cannot_interrupt(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(workers, "_GRACE", 0.05)
    monkeypatch.setattr(workers.os, "_exit", ended.append)
    begun = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)
    half_a_second = int(200_000 * 0.5 / (time.monotonic() - begun))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        workers._obey_interrupts()
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            begun = time.monotonic()
            while time.monotonic() - begun < 20:  # each round is one call that Python looks up from when it ends
                hashlib.pbkdf2_hmac("sha256", b"", b"", half_a_second)
    finally:
        signal.signal(signal.SIGINT, before)
        command_line.cleanups.close()
    assert ended == [130] and capfd.readouterr().err.startswith("error: interrupted while waiting for another worker")
