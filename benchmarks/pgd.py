"""Times PGD-50, or FMN, of this package against Foolbox's, on the same network and images, in one run.

    python -m benchmarks.pgd --models=small_cnn --images=250
    python -m benchmarks.pgd --models=small_cnn --attack=fmn --steps=100

Contenders, in turn, `--rounds` times over:

- ours: the attack as evaluations run it, compiled, kernels cached once per batch;
- eager, compiled: Foolbox on the same network, called as it is, and behind a `tf.function`;
- exported eager, exported compiled: Foolbox on the plain Keras network that is exported, of the same function: what a
  user of the exported network attacks, without our layers and their gradients.

All attack all images, at full length. Printed are median times after a first call that is not timed, and ratios; for
FMN also the median distance that each finds.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import numpy as np
from absl import app, flags

from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["small_cnn", "lenet5_caffe"], "Architectures of the package, or .keras files of ours.")
flags.DEFINE_integer("images", 250, "Images in the batch, of the sample in the package.", 1)
flags.DEFINE_enum("attack", "pgd", ["pgd", "fmn"], "Which attack, in Linf.")
flags.DEFINE_integer("steps", 50, "Steps of the attack.", 1)
flags.DEFINE_integer("rounds", 5, "How often the contenders run in turn.", 1)
flags.DEFINE_float("connectivity", 0.1, "Connectivity of the networks; 1 for dense ones.", 0, 1)
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

EPSILON = 0.1


def main(argv: list[str]) -> None:
    """Times the contenders and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    import tf_robust_sparse as trs

    images = trs.data.load("fashion_mnist_sample")
    x = images.test_images[: FLAGS.images].astype("float32") / 255
    y = images.test_labels[: FLAGS.images].astype("int64")
    record = {}
    for name in FLAGS.models:
        seconds: dict[str, list[float]] = {}
        contenders = prepare(build(name), x, y)
        medians = {who: median_distance(contender(), x) for who, contender in contenders.items()}
        for _ in range(FLAGS.rounds):
            for who, contender in contenders.items():
                begin = time.perf_counter()
                contender()
                seconds.setdefault(who, []).append(time.perf_counter() - begin)
        record[name] = seconds
        ours = statistics.median(seconds["ours"])
        print(f"\n{name}, {len(x)} images, {FLAGS.attack.upper()}-{FLAGS.steps}")
        for who, found in seconds.items():
            distance = f"   median distance {medians[who]:.5f}" if FLAGS.attack == "fmn" else ""
            ratio = statistics.median(found) / ours
            print(f"{who:17s} {statistics.median(found):7.3f} s   {ratio:5.2f} x ours{distance}", flush=True)
    if FLAGS.results_file:
        Path(FLAGS.results_file).write_text(json.dumps(record, indent=1))


def median_distance(x_adv: np.ndarray, x: np.ndarray) -> float:
    """Returns the median l-infinity distance of adversarial examples from their images."""
    return float(np.median(np.abs(x_adv - x).max(axis=(1, 2, 3))))


def build(name: str) -> Any:
    """The network: of a file, or a new one."""
    import keras

    import tf_robust_sparse as trs

    if Path(name).exists():
        return trs.load_network(name)
    keras.utils.set_random_seed(0)
    sparse = {"kernel": "rewiring", "connectivity": FLAGS.connectivity} if FLAGS.connectivity < 1 else {}
    return getattr(trs.models, name)(input_shape=(28, 28, 1), num_classes=10, **sparse)


def prepare(network: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The contenders as functions without arguments."""
    import eagerpy
    import foolbox
    import tensorflow as tf

    import tf_robust_sparse as trs

    if FLAGS.attack == "fmn":
        attack: Any = trs.attacks.FMN("Linf", FLAGS.steps)
        theirs: Any = foolbox.attacks.LInfFMNAttack(steps=FLAGS.steps)
    else:
        attack = trs.attacks.LinfPGD(EPSILON, num_steps=FLAGS.steps)
        theirs = foolbox.attacks.LinfPGD(abs_stepsize=attack.step_size, steps=FLAGS.steps, random_start=True)
    images, labels = tf.constant(x), tf.constant(y)
    forward = inference_forward(network)

    @tf.function(autograph=False)
    def ours(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with cached_for_inference(network):
            return attack(forward, images, labels, seed=0)

    exported = trs.saving.strip(network)

    def compiled(model: Any) -> Any:
        return tf.function(lambda images: model(images, training=False), autograph=False)

    def foolbox_on(function: Callable[..., Any]) -> Callable[[], Any]:
        model = foolbox.models.TensorFlowModel(function, bounds=(0, 1), device="/CPU:0")
        criterion = foolbox.criteria.Misclassification(eagerpy.astensor(labels))
        radius = {} if FLAGS.attack == "fmn" else {"epsilon": EPSILON}
        return lambda: theirs.run(model, eagerpy.astensor(images), criterion, **radius).raw.numpy()

    return {
        "ours": lambda: ours(images, labels).numpy(),
        "eager": foolbox_on(lambda images: network(images, training=False)),
        "compiled": foolbox_on(compiled(network)),
        "exported eager": foolbox_on(lambda images: exported(images, training=False)),
        "exported compiled": foolbox_on(compiled(exported)),
    }


if __name__ == "__main__":
    app.run(main)
