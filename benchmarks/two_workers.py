"""Times adversarial training on one worker and on two, a core each, with the same global batch.

    python -m benchmarks.two_workers
    python -m benchmarks.two_workers --connectivity=1 --batch_size=128 --contenders=one,parts,two

Contenders, each of processes of its own, one after the other:

- one: one worker on one core;
- parts: two workers on one core each, both alone with half of the batch: what two could be if they never waited for one
  another;
- local: two workers on one core each that train together, with batch norm over the images of one worker;
- two: the same with batch norm over the global batch, which is what a run does.

Printed are the seconds of a step, the least of `--steps`, and how many times faster that is than one worker.
"""

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

FLAGS = flags.FLAGS
CONTENDERS = ["one", "parts", "local", "two"]
flags.DEFINE_string("model", "wrn28_2", "Network.")
flags.DEFINE_float("connectivity", 0.1, "Connectivity; 1 for a dense network.", 0, 1)
flags.DEFINE_integer("batch_size", 64, "Images per step, of all workers together.", lower_bound=2)
flags.DEFINE_integer("num_steps", 5, "Steps of the attack.", lower_bound=1)
flags.DEFINE_integer("steps", 8, "Timed steps, after two that are not.", lower_bound=1)
flags.DEFINE_multi_enum("contenders", CONTENDERS, CONTENDERS, "Which to time.")
flags.DEFINE_string("contender", None, "Be a worker of this one and print JSON; used by the script itself.")
flags.DEFINE_integer("core", 0, "The core of this worker; used by the script itself.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")


def main(argv: list[str]) -> None:
    """Runs the contenders in turn and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    if FLAGS.contender:
        print(json.dumps(measure()))
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit(f"two_workers: expected two cores. Received: {cores}")
    print(f"{FLAGS.model}, connectivity {FLAGS.connectivity:g}, batch {FLAGS.batch_size}, PGD-{FLAGS.num_steps}")
    results: dict[str, float] = {}
    for name in FLAGS.contenders:
        results[name] = run(name, cores[: 1 if name == "one" else 2])
        faster = f"{results['one'] / results[name]:6.2f} x one" if "one" in results else ""
        print(f"{name:8s}{results[name]:8.3f} s/step {faster}", flush=True)
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump(results, file, indent=1)


def run(contender: str, cores: list[int]) -> float:
    """Returns the seconds of a step of a contender, whose workers have a core each."""
    own = [sys.executable, "-m", "benchmarks.two_workers", f"--contender={contender}"]
    own += [f"--{name}={FLAGS[name].value}" for name in ("model", "connectivity", "batch_size", "num_steps", "steps")]
    hosts = [f"127.0.0.1:{port}" for port in free_ports(len(cores))]
    workers = []
    for index, core in enumerate(cores):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        together = {"TF_CONFIG": json.dumps(task)} if contender in ("local", "two") else {}
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **together}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        workers.append(subprocess.Popen([*own, f"--core={core}"], env=environment, **pipes))
    seconds = []
    for worker in workers:
        out, errors = worker.communicate()
        if worker.returncode:
            for each in workers:
                each.kill()
            raise SystemExit(f"{contender} failed:\n{errors[-2000:]}")
        seconds.append(json.loads(out.splitlines()[-1]))
    return max(seconds)


def free_ports(number: int) -> list[int]:
    """Returns ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def measure() -> float:
    """Returns the least seconds of a step of this worker."""
    os.sched_setaffinity(0, {FLAGS.core})  # before TensorFlow counts the cores
    import numpy as np
    import tensorflow as tf

    import tf_robust_sparse as trs

    together = FLAGS.contender in ("local", "two")
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if together else tf.distribute.get_strategy()
    size = FLAGS.batch_size // 2 if FLAGS.contender == "parts" else FLAGS.batch_size
    sparse = FLAGS.connectivity < 1
    form: dict[str, Any] = {"kernel": "rewiring", "connectivity": FLAGS.connectivity} if sparse else {}
    with strategy.scope():
        network = trs.models.build(FLAGS.model, seed=0, synchronized_batch_norm=FLAGS.contender == "two", **form)
        objective = trs.objectives.AT(trs.attacks.LinfPGD(8 / 255, 2 / 255, FLAGS.num_steps))
        sparsifier = trs.sparsity.ConnectivitySampling(FLAGS.connectivity) if sparse else None
        model = trs.RobustModel(network, objective, sparsifier)
        model.compile(trs.training.sgdw(0.1, 5e-4), metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x, y = rng.random((size, 32, 32, 3), np.float32), rng.integers(0, 10, size)
    data = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors((x, y)).repeat()))
    model.make_train_function()
    durations = []
    for _ in range(2 + FLAGS.steps):
        begin = time.perf_counter()
        float(tf.reshape(model.train_function(data)["loss"], ()))
        durations.append(time.perf_counter() - begin)
    return min(durations[2:])


if __name__ == "__main__":
    app.run(main)
