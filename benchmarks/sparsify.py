"""Times training steps of a model after `trs.sparsify` against those of its dense self, in one run.

    python -m benchmarks.sparsify --model=resnet18 --objective=at --batch_size=32
    python -m benchmarks.sparsify --model=mobilenetv2 --objective=natural --memory

Contenders take turns, step by step, in one process: the model as it is, magnitude pruning at once, and methods that
move connections. A step of those is timed when nothing moves and when connections do; printed is their mean over
`--interval` steps. With `--memory` each contender also trains in a process of its own, whose peak is printed.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "model",
    "resnet18",
    ["resnet18", "mobilenetv2", "resnet50", "small"],
    "mobilenetv2 and resnet50 of keras.applications.",
)
flags.DEFINE_enum("objective", "at", ["at", "natural"], "at: with PGD of ten steps.")
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Timed steps of each kind, after two that are not.", lower_bound=1)
flags.DEFINE_integer("interval", 100, "Steps between two updates of the connections.", lower_bound=2)
flags.DEFINE_float("connectivity", 0.1, "Of the sparse contenders.", 0, 1)
flags.DEFINE_list("contenders", ["magnitude", "set", "rigl", "flying_bird", "n_m"], "Beside the dense model.")
flags.DEFINE_bool("memory", False, "Measure the peak of each contender too.")
flags.DEFINE_string("only", None, "Train this one in this process and print its peak; used by the script itself.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

Step = Callable[[bool], float]


def main(argv: list[str]) -> None:
    """Runs the contenders in turn and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    if FLAGS.only:
        step = contender(FLAGS.only)
        for moves in (False, True, False):
            step(moves)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    names = ["dense", *FLAGS.contenders]
    # Before this process grows: a child's peak begins with the size of its parent.
    peaks = {name: peak(name) for name in names} if FLAGS.memory else {}
    steps = {name: contender(name) for name in names}
    still: dict[str, list[float]] = {name: [] for name in names}
    moving: dict[str, list[float]] = {name: [] for name in names}
    for number in range(FLAGS.rounds + 2):
        for name, step in steps.items():
            times = step(False), step(True)
            if number >= 2:
                still[name].append(times[0])
                moving[name].append(times[1])
    report(still, moving, peaks)


def report(still: dict[str, list[float]], moving: dict[str, list[float]], peaks: dict[str, float]) -> None:
    """Prints medians and ratios."""
    print(f"{FLAGS.model}, batch {FLAGS.batch_size}, {FLAGS.objective}, connectivity {FLAGS.connectivity}")
    print(f"{'':12s}  step ms  when moving ms  mean / dense" + ("  peak MiB" if peaks else ""))
    means = {}
    for name in still:
        usual, update = statistics.median(still[name]), statistics.median(moving[name])
        means[name] = ((FLAGS.interval - 1) * usual + update) / FLAGS.interval
        line = f"{name:12s} {1e3 * usual:8.1f} {1e3 * update:15.1f} {means[name] / means['dense']:13.3f}"
        print(line + (f" {peaks[name]:9.0f}" if peaks else ""))
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump({"still": still, "moving": moving, "peaks": peaks, "means": means}, file, indent=1)


def contender(name: str) -> Step:
    """Returns a step of the compiled training function; its argument says whether connections move in it."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_robust_sparse as trs

    keras.utils.set_random_seed(0)
    sparsifiers: dict[str, Callable[[], Any]] = {
        "magnitude": trs.sparsity.MagnitudePruning,
        "set": lambda: trs.sparsity.SET(interval=FLAGS.interval),
        "rigl": lambda: trs.sparsity.RigL(interval=FLAGS.interval),
        "flying_bird": lambda: trs.sparsity.FlyingBird(interval=FLAGS.interval),
        "n_m": lambda: trs.sparsity.NM(2, 4),
        "block": lambda: trs.sparsity.BlockPruning(block=(1, 16)),
    }
    model = network()
    connectivity = None if name == "n_m" else FLAGS.connectivity
    sparsifier = None
    if name != "dense":
        sparsifier = trs.sparsify(model, connectivity, sparsifiers[name]()).sparsifier
    attack = trs.attacks.LinfPGD(8 / 255, 2 / 255, 10)
    objective = trs.objectives.AT(attack) if FLAGS.objective == "at" else trs.objectives.Natural()
    trainer = trs.RobustModel(model, objective, sparsifier)
    trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    generator = np.random.default_rng(0)
    x = tf.constant(generator.random((FLAGS.batch_size, 32, 32, 3), np.float32))
    y = tf.constant(generator.integers(0, 10, FLAGS.batch_size))
    data = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    trainer.make_train_function()

    def step(moves: bool) -> float:
        trainer.optimizer.iterations.assign(FLAGS.interval if moves else FLAGS.interval + 1)
        begin = time.perf_counter()
        float(trainer.train_function(data)["loss"])
        return time.perf_counter() - begin

    return step


def network() -> Any:
    """Returns the model of --model, of plain Keras layers."""
    import keras

    import tf_robust_sparse as trs

    if FLAGS.model == "resnet18":
        return trs.saving.strip(trs.models.resnet18(seed=0))
    if FLAGS.model == "small":
        return trs.saving.strip(trs.models.small_cnn(input_shape=(32, 32, 3), seed=0))
    kind = keras.applications.MobileNetV2 if FLAGS.model == "mobilenetv2" else keras.applications.ResNet50
    return kind(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)


def peak(name: str) -> float:
    """Returns the peak memory of a contender in a process of its own, in MiB."""
    command = [sys.executable, "-m", "benchmarks.sparsify", f"--only={name}"]
    command += [f"--{each}={FLAGS[each].value}" for each in ("model", "objective", "batch_size", "connectivity")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    app.run(main)
