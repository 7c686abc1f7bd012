"""Checks that no network runs slower with the engine than without it: logits of a batch, and PGD on one.

    python -m benchmarks.never_worse --threads=2 --seconds=0.1
    python -m benchmarks.never_worse --zoo=lenet5_caffe --shares=0.1 --batches=1,32,250 --forced

Both contenders are calls as evaluation makes them, the preparation of the kernels included: one forward pass, and
`LinfPGD` with `--num_steps` steps. They take turns; printed are the least time of each and their ratio, TensorFlow's
time over the engine's, and at the end the smallest ratios. `--forced` has the engine
compute every network and batch, to see what the estimates of `layers/engine_costs.py` should be.
"""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from benchmarks.runtime import least
from tf_robust_sparse.layers.kernel_seam import cached_for_inference, inference_logits

FLAGS = flags.FLAGS
_MODELS = "lenet5_caffe,lenet_conv,dense_300_100,small_cnn,large_cnn,vgg4,resnet18_p01,resnet34_p1,wrn28_2,resnet18"
flags.DEFINE_list("zoo", _MODELS, "Networks.")
flags.DEFINE_list("shares", ["1", "0.1", "0.01"], "Fractions of connections.")
flags.DEFINE_list("batches", ["1", "32", "128"], "Images per call.")
flags.DEFINE_integer("num_steps", 7, "Steps of PGD.", 1)
flags.DEFINE_bool("forced", False, "Use the engine wherever it knows all layers.")

SETTINGS = {"TensorFlow": "0", "engine": "1"}  # of TRS_ENGINE


def main(argv: list[str]) -> None:
    """Times every network both ways."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    if FLAGS.forced:
        lift_bounds()
    results = {}
    for name, share, size in itertools.product(FLAGS.zoo, map(float, FLAGS.shares), map(int, FLAGS.batches)):
        for work, calls in contenders(name, share, size).items():
            found = least(calls)
            ratio = found["TensorFlow"] / found["engine"]
            results[f"{name} {share:g} batch {size} {work}"] = {**found, "ratio": ratio}
            print(
                f"{name:16s}{share:<6g}batch {size:<5d}{work:8s}{1e3 * found['TensorFlow']:9.3f} ms "
                f"{1e3 * found['engine']:9.3f} ms  {ratio:6.2f}",
                flush=True,
            )
    print("\nSmallest ratios:")
    for key in sorted(results, key=lambda key: results[key]["ratio"])[:8]:
        print(f"{results[key]['ratio']:6.2f}  {key}")
    if FLAGS.results_file:
        Path(FLAGS.results_file).write_text(json.dumps(results, indent=2))


def lift_bounds() -> None:
    """Lets the engine take every network and every batch."""
    from tf_robust_sparse.layers.engine_costs import Costs

    Costs.is_faster = lambda self, *given: True  # type: ignore[method-assign]


def contenders(name: str, share: float, size: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each work what does it on TensorFlow, and with the engine."""
    import numpy as np
    import tensorflow as tf

    import tf_robust_sparse as trs

    form = {"kernel": "rewiring", "connectivity": share} if share < 1 else {"kernel": "plain"}
    network = trs.models.build(name, **form, seed=FLAGS.seed)
    rng = np.random.default_rng(1)
    x = tf.constant(rng.random((size, *network.input_shape[1:]), np.float32))
    y = tf.constant(rng.integers(0, network.output_shape[-1], size))
    attack = trs.attacks.LinfPGD(8 / 255, 2 / 255, FLAGS.num_steps)
    works = {"logits": inference_logits, "attack": lambda network, some: attack(network, some, y)}
    found: dict[str, dict[str, Callable[[], Any]]] = {work: {} for work in works}
    for (work, call), (contender, setting) in itertools.product(works.items(), SETTINGS.items()):
        os.environ["TRS_ENGINE"] = setting  # read where a call is traced

        @tf.function(autograph=False)
        def prepared(some: tf.Tensor, call: Callable[..., Any] = call) -> tf.Tensor:
            with cached_for_inference(network):
                return call(network, some)

        prepared(x)
        found[work][contender] = lambda prepared=prepared: prepared(x)
    return found


if __name__ == "__main__":
    app.run(main)
