"""Times the engine against TensorFlow, and ONNX Runtime where it is installed, in one run.

    python -m benchmarks.runtime --work=convolution --threads=1
    python -m benchmarks.runtime --work=network --models=resnet18,vgg16 --threads=1

Works:

- convolution: 3x3, stride 1, padding "same", with as many filters as channels and random connections, from input to
  output as each contender keeps them; on one thread;
- network: whole networks with random weights, their connections those that connectivity sampling starts with.

The contenders take turns; printed is the least time of each, and how many times faster the engine is.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from tf_robust_sparse.evaluation import runtimes

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("work", ["convolution", "network"], ["convolution", "network"], "What to time.")
flags.DEFINE_list("models", ["resnet18", "vgg16"], "Networks.")
flags.DEFINE_list("layers", ["64x32", "128x16", "256x8", "512x4", "512x2"], "Channels and pixels of convolutions.")
flags.DEFINE_list("connectivities", ["0.01", "0.05", "0.1", "1"], "Fractions of connections.")
flags.DEFINE_list("batch_sizes", ["1", "32"], "Images per call.")
flags.DEFINE_integer("threads", 1, "Threads of every contender.", lower_bound=1)
flags.DEFINE_float("seconds", 2.0, "How long each contender runs.", lower_bound=0.01)
flags.DEFINE_integer("seed", 0, "Seed of weights and connections.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")


def main(argv: list[str]) -> None:
    """Builds, times, prints a table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    results: dict[str, Any] = {}
    for work in FLAGS.work:
        for name in FLAGS.layers if work == "convolution" else FLAGS.models:
            for connectivity in map(float, FLAGS.connectivities):
                network = (convolution if work == "convolution" else whole)(name, connectivity)
                for size in map(int, FLAGS.batch_sizes):
                    found = least(contenders(network, size))
                    key = f"{work} {name} {connectivity:g} batch {size}"
                    results[key] = found
                    words = [f"{peer} {1e3 * t:.3f} ms ({t / found['engine']:.2f})" for peer, t in found.items()]
                    print(f"{key:40s}{', '.join(words)}", flush=True)
    if FLAGS.results_file:
        Path(FLAGS.results_file).write_text(json.dumps(results, indent=2))


def convolution(name: str, connectivity: float) -> Any:
    """One layer, whose outputs are read where they lie."""
    import keras
    import numpy as np

    channels, pixels = map(int, name.split("x"))
    image = keras.Input((pixels, pixels, channels))
    layer = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D()(layer(image)))
    rng = np.random.default_rng(FLAGS.seed)
    layer.set_weights(
        [rng.normal(size=(3, 3, channels, channels)) * (rng.random((3, 3, channels, channels)) < connectivity)]
    )
    return network


def whole(name: str, connectivity: float) -> Any:
    """A network of plain Keras layers."""
    import tf_robust_sparse as trs

    form = {"kernel": "rewiring", "connectivity": connectivity} if connectivity < 1 else {"kernel": "plain"}
    return trs.saving.strip(trs.models.build(name, **form, seed=FLAGS.seed))


def contenders(network: Any, size: int) -> dict[str, Callable[[], Any]]:
    """Functions that compute the outputs of one batch."""
    import numpy as np
    import tensorflow as tf

    import tf_robust_sparse as trs

    x = np.random.default_rng(1).random((size, *network.input_shape[1:]), np.float32)
    fast, pixels = trs.runtime.compile(network, FLAGS.threads), tf.constant(x)
    step = tf.function(lambda some: network(some, training=False), autograph=False)
    expected = step(pixels).numpy()
    assert np.abs(fast(x) - expected).max() <= 1e-5 * np.abs(expected).max()
    if len(network.layers) == 3:
        return convolution_alone(network, x)
    return {
        "engine": lambda: fast(x),
        "TensorFlow": lambda: step(pixels).numpy(),
        **onnx_runtime(network, x),
    }


def onnx_runtime(network: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """The same in ONNX Runtime, if there is one."""
    import tf_robust_sparse as trs

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = trs.export_onnx(network, Path(folder) / "network.onnx")
            run = runtimes.onnx_function(path, FLAGS.threads)
        return {"ONNX Runtime": lambda: run(x)}
    except ImportError:
        return {}


def convolution_alone(network: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """The convolution of a network of one layer, from input to output as each contender keeps them."""
    import numpy as np
    import tensorflow as tf

    from tf_robust_sparse.engine import library
    from tf_robust_sparse.engine.engine import Engine
    from tf_robust_sparse.engine.layout import aligned
    from tf_robust_sparse.engine.plan import KINDS, make_plan
    from tf_robust_sparse.layers.engine_seam import network_nodes

    layer = network.layers[1]
    plan = make_plan(network_nodes(network), 1 if len(x) == 1 else 16)
    words = Engine(plan).pack({layer.name: (layer.kernel.numpy(), None)})
    ops = plan.forward[plan.forward["kind"] == KINDS.index("convolve")]
    space, where = aligned(plan.space), library.address
    space[:] = 0.5
    for place, positions, pitch, width in plan.stencils:
        space[place : place + positions] = np.arange(positions) % pitch < width

    def engine() -> None:
        for _ in range(-(-len(x) // plan.lanes)):
            arguments = (len(ops), where(words), where(space), where(x), plan.lanes, where(x))
            library.library().trs_run(library.width(), where(ops), *arguments)

    pixels, kernel = tf.constant(x), tf.constant(layer.kernel.numpy())
    step = tf.function(lambda some: tf.nn.conv2d(some, kernel, 1, "SAME"), autograph=False)
    return {"engine": engine, "TensorFlow": lambda: step(pixels)}


def least(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Returns the least time of each call; they take turns."""
    found = dict.fromkeys(calls, float("inf"))
    spent = dict.fromkeys(calls, 0.0)
    while min(spent.values()) < FLAGS.seconds:
        for name, call in calls.items():
            for _ in range(3):
                begin = time.perf_counter()
                call()
                took = time.perf_counter() - begin
                found[name], spent[name] = min(found[name], took), spent[name] + took
    return found


if __name__ == "__main__":
    app.run(main)
