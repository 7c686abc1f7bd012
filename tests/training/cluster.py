"""Starting several processes that train together, as several machines would, and ending them all in any case."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_ports(number):
    """Returns ports that were free a moment ago; they are held until all are found, so that they differ."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def environment(**variables):
    """Returns an environment for a process that sees the CPU only and is not part of a cluster."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", **variables}


def run(arguments, workers=1, timeout=600):
    """Runs `python *arguments` as that many workers of a cluster (1: no cluster) and returns what each printed.

    As soon as one fails, or the time is up, all are killed.
    """
    hosts = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes, outputs = [], []
    try:
        for index in range(workers):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            cluster = {"TF_CONFIG": json.dumps(task)} if workers > 1 else {}
            # Not a pipe: one that nobody reads would block the worker.
            outputs.append(tempfile.TemporaryFile("w+"))  # noqa: SIM115
            command = [sys.executable, *map(str, arguments)]
            processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment(**cluster), stdout=outputs[-1], stderr=subprocess.STDOUT
                )
            )
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.2)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        texts = []
        for output in outputs:
            output.seek(0)
            texts.append(output.read())
            output.close()
    assert codes == [0] * workers, f"exit codes {codes} (None: killed)\n" + "\n\n".join(text[-3_000:] for text in texts)
    return texts
