"""Compares bounds with auto_LiRPA and smoothing with its public PyTorch code: the numbers, and the times.

    git clone https://github.com/Verified-Intelligence/auto_LiRPA
    git clone https://github.com/locuslab/smoothing
    python -m benchmarks.certify --reference=auto_LiRPA --smoothing_reference=smoothing --data_dir=DIR \\
        --weights_dir=robust-weights --networks=runs/sparse/network.keras

Four parts, of which --parts chooses:

- agreement: the largest difference of IBP, CROWN-IBP and CROWN margins, relative to the largest margin, on the public
  networks in --weights_dir (`public_networks.py`) and on --networks, with the same slopes, balls and tensors;
- training: one CROWN-IBP step (intervals, backward pass, loss, gradient, Adam) of the small and the large CNN;
- evaluation: IBP and CROWN margins of both CNNs on images; the other program allows for no rounding errors, so ours
  does so only with --rounding;
- smoothing: one certificate with 100 and 10,000 answers under noise.

In the last three, the two programs take turns in this process. Compared are the medians and the smallest times, which
other work on the machine disturbs less. Run it on an idle machine nevertheless: the threads of PyTorch wait for one
another, and other work multiplies its times. On a machine that is never idle, --threads=1 --clock=cpu compares the
processor time of the two. Networks are passed to PyTorch as ONNX files. auto_LiRPA bounds convolutions as patches or as
matrices; both are timed, and the faster one counts. PyTorch comes with the extra `benchmark`, onnx with `onnx`;
auto_LiRPA also needs appdirs, graphviz and pyyaml, smoothing needs statsmodels. Without the clones, only this package
is timed.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
PARTS = ("agreement", "training", "evaluation", "smoothing")
flags.DEFINE_list("parts", list(PARTS), "What to do.")
flags.DEFINE_string("reference", None, "Folder of a clone of auto_LiRPA.")
flags.DEFINE_string("smoothing_reference", None, "Folder of a clone of locuslab/smoothing.")
flags.DEFINE_string("weights_dir", None, "Folder of the public networks.")
flags.DEFINE_list("networks", [], "More networks to agree on, network.keras of --data.")
flags.DEFINE_string("data", "mnist", "Data set of --networks.")
flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
flags.DEFINE_string("epsilon", "0.1", "Radius for --networks, in pixels of [0, 1].")
flags.DEFINE_list("slopes", ["adaptive"], "Lower lines to compare: adaptive, zero-lb, one-lb, same-slope.")
flags.DEFINE_integer("images", 8, "Images to agree on.", 1)
flags.DEFINE_list("models", ["small_cnn", "large_cnn"], "Networks to time.")
flags.DEFINE_integer("batch_size", 64, "Images of a training step and of an evaluation by IBP.", 1)
flags.DEFINE_integer("crown_images", 4, "Images of an evaluation by CROWN.", 1)
flags.DEFINE_integer("n", 10_000, "Answers under noise.", 100)
flags.DEFINE_integer("threads", os.cpu_count(), "Threads of each side.", 1)
flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "What to time: elapsed time, or the process's time on the CPU.")
flags.DEFINE_integer("rounds", 5, "How often the contenders take turns.", 1)
flags.DEFINE_bool("rounding", False, "Whether our bounds of an evaluation allow for rounding, as certificates do.")
flags.DEFINE_integer("seed", 0, "Of weights, images and noise.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
EPSILON = 2 / 255


_PAUSE = 0.3  # seconds before a turn, in which the threads of the one before go to sleep
_TURN = 0.5  # seconds of a turn, at least one call


def main(argv: list[str]) -> None:
    """Runs the chosen parts and prints their tables."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    prepare()
    parts = {"agreement": agreement, "training": training, "evaluation": evaluation, "smoothing": smoothing}
    record = {name: parts[name]() for name in FLAGS.parts}
    if FLAGS.results_file:
        Path(FLAGS.results_file).write_text(json.dumps(record, indent=1))


def prepare() -> None:
    """Checks the clock, sets the threads, and finds auto_LiRPA."""
    import tensorflow as tf

    if FLAGS.clock == "cpu" and FLAGS.threads != 1:
        raise app.UsageError("--clock=cpu compares one thread of each side, for waiting threads count too: --threads=1")
    sys.path[:0] = [str(Path(folder).resolve()) for folder in (FLAGS.reference,) if folder]
    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(FLAGS.threads)
    if FLAGS.reference or FLAGS.smoothing_reference:
        import torch

        torch.set_num_threads(FLAGS.threads)


def agreement() -> list[dict[str, Any]]:
    """Margins of both on the same images."""
    import keras

    from tf_robust_sparse.certify.bounds import training_margins

    rows = []
    for network, x, y, epsilon in networks():
        if any(isinstance(layer, keras.layers.MaxPooling2D) for layer in network.layers):
            # Of blank pixels all inputs of a window have one lower bound, and rounding would choose between them.
            noise = np.random.default_rng(FLAGS.seed).random(x.shape, np.float32) / 255
            x = 0.1 + 0.8 * x + noise
        y = network.predict(x, verbose=0).argmax(1)  # of the answered class; both sides work for any
        for method in METHODS:
            for slope in FLAGS.slopes if method != "ibp" else ["adaptive"]:
                begin = time.perf_counter()
                ours = training_margins(network, x, y, epsilon, method, slope=slope).numpy()
                row = {
                    **{"network": network.name, "method": method, "slope": slope, "epsilon": epsilon, "images": len(x)},
                    **{"scale": float(np.abs(ours).max()), "seconds": time.perf_counter() - begin},
                }
                if FLAGS.reference:
                    peer = Reference(network, x.shape, slope, "matrix", plain=True)
                    begin = time.perf_counter()
                    theirs = peer.margins(x, y, epsilon, method)
                    row["reference_seconds"] = time.perf_counter() - begin
                    row["difference"] = float(np.abs(ours - theirs).max() / row["scale"])
                rows.append(row)
                print(
                    f"{network.name:22s} {method:10s} {slope:10s} relative difference "
                    f"{row.get('difference', np.nan):.1e}   largest margin {row['scale']:8.3f}   first calls: ours "
                    f"{row['seconds']:6.2f} s, reference {row.get('reference_seconds', np.nan):6.2f} s",
                    flush=True,
                )
    return rows


def networks() -> Any:
    """Yields network, images, labels and radius."""
    import tf_robust_sparse as trs
    from benchmarks import public_networks

    found = {}

    def images(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in found:
            read = trs.data.load(name, FLAGS.data_dir)
            found[name] = read.test_images[: FLAGS.images].astype("float32") / 255, read.test_labels[: FLAGS.images]
        return found[name]

    if FLAGS.weights_dir:
        for name, (data, _, _, epsilon) in public_networks.NETWORKS.items():
            try:
                x, y = images(data)
            except FileNotFoundError as error:
                print(f"{name}: left out, {str(error).splitlines()[0]}")
                continue
            yield public_networks.read(Path(FLAGS.weights_dir) / f"{name}.npz", x.shape[1:]), x, y, epsilon
    for path in FLAGS.networks:
        network = trs.load_network(path)
        x, y = images(FLAGS.data)
        yield network, x, y, float(Fraction(FLAGS.epsilon))


class Reference:
    """auto_LiRPA on the same network.

    By default it bounds neurons by intervals where these decide them, and by lines elsewhere: a mixture of CROWN and
    IBP, other than CROWN wherever lines alone leave such a neuron undecided. `plain` asks for CROWN alone.
    """

    def __init__(self, network: Any, shape: tuple[int, ...], slope: str, mode: str, plain: bool = False) -> None:
        import torch
        from auto_LiRPA import BoundedModule  # type: ignore[import-not-found]

        from benchmarks.torch_copy import TorchCopy

        dummy = torch.zeros(shape[0], shape[3], *shape[1:3])
        options = {
            **{"activation_bound_option": slope, "conv_mode": mode},
            **{"sparse_intermediate_bounds": not plain, "sparse_intermediate_bounds_with_ibp": not plain},
        }
        self.model = BoundedModule(TorchCopy(network), dummy, bound_opts=options)
        self.classes = network.output_shape[-1]

    def ball(self, x: np.ndarray, epsilon: float) -> Any:
        """The box around the images, within [0, 1]."""
        import torch
        from auto_LiRPA import BoundedTensor, PerturbationLpNorm  # type: ignore[import-not-found]

        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 3, 1)))
        box = {"x_L": (pixels - epsilon).clamp(0, 1), "x_U": (pixels + epsilon).clamp(0, 1)}
        return BoundedTensor(pixels, PerturbationLpNorm(norm=np.inf, **box))

    def rows(self, y: np.ndarray) -> Any:
        """What is asked about the logits."""
        import torch

        from tf_robust_sparse.certify.bounds import specification

        return torch.from_numpy(specification(y, self.classes).numpy())

    def margins(self, x: np.ndarray, y: np.ndarray, epsilon: float, method: str) -> np.ndarray:
        """As `certify.margins`."""
        import torch

        with torch.no_grad():
            lower, _ = self.model.compute_bounds(
                x=(self.ball(x, epsilon),), C=self.rows(y), method=METHODS[method], bound_upper=False
            )
        return lower.numpy()


def training() -> list[dict[str, Any]]:
    """One CROWN-IBP step, at the half of the schedule: beta 1/2."""
    found = []
    for name in FLAGS.models:
        x, y = random_images(FLAGS.batch_size)
        contenders = {"ours": our_step(name, x, y)}
        if FLAGS.reference:
            for mode in ("patches", "matrix"):
                contenders[mode] = their_step(name, x, y, mode)
        found.append({"model": name, "batch_size": FLAGS.batch_size, **compared(f"{name}, training step", contenders)})
    return found


def our_step(name: str, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    """A step in one compiled function."""
    import keras
    import tensorflow as tf

    from tf_robust_sparse.certify import bounds
    from tf_robust_sparse.certify.bound_graph import bound_graph
    from tf_robust_sparse.certify.bounds import specification
    from tf_robust_sparse.layers import cached_kernels

    network = model(name)
    optimizer = keras.optimizers.Adam(5e-4)
    optimizer.build(network.trainable_variables)

    @tf.function(autograph=False)
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, cached_kernels(network):
            steps, around = bound_graph(network), bounds.ball(x, EPSILON)
            rows = specification(y, 10)
            intervals = bounds.interval_bounds(steps, around)
            by_interval = bounds.interval_margins(steps, intervals, rows)
            by_lines = bounds.linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, "adaptive")
            lower = (by_interval + by_lines) / 2
            logits = tf.concat([tf.zeros((tf.shape(lower)[0], 1)), -lower], 1)
            loss = tf.reduce_mean(-tf.nn.log_softmax(logits)[:, 0])
        variables = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    x, y = tf.constant(x), tf.constant(y)
    return lambda: float(step(x, y))


def their_step(name: str, x: np.ndarray, y: np.ndarray, mode: str) -> Callable[[], float]:
    """A step as in the examples of auto_LiRPA."""
    import torch
    import torch.nn.functional as F

    peer = Reference(model(name), x.shape, "adaptive", mode)
    optimizer = torch.optim.Adam(peer.model.parameters(), 5e-4)
    around, rows = peer.ball(x, EPSILON), peer.rows(y)

    def step() -> float:
        optimizer.zero_grad()
        by_interval, _ = peer.model.compute_bounds(x=(around,), IBP=True, C=rows, method=None)
        by_lines, _ = peer.model.compute_bounds(IBP=False, C=rows, method="backward", bound_upper=False)
        lower = (by_interval + by_lines) / 2
        loss = F.cross_entropy(F.pad(-lower, (1, 0)), torch.zeros(len(lower), dtype=torch.int64))
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def evaluation() -> list[dict[str, Any]]:
    """Margins by IBP, CROWN-IBP and CROWN."""
    import tensorflow as tf

    from tf_robust_sparse.certify import bounds

    find = bounds.margins if FLAGS.rounding else bounds.training_margins
    found = []
    for name in FLAGS.models:
        for method in METHODS:
            x, y = random_images(FLAGS.crown_images if method == "crown" else FLAGS.batch_size)
            network = model(name)

            @tf.function(autograph=False)
            def ours(x: tf.Tensor, y: tf.Tensor, network: Any = network, method: str = method) -> tf.Tensor:
                # Theirs uses intervals to leave out neurons too; ours does where the bounds are to be tight.
                return find(network, x, y, EPSILON, method, tight=method == "crown")

            inputs = tf.constant(x), tf.constant(y)
            contenders = {"ours": lambda ours=ours, inputs=inputs: ours(*inputs).numpy()}
            if FLAGS.reference:
                for mode in ("patches", "matrix"):
                    if mode == "matrix" and method == "crown" and name == "large_cnn":
                        continue  # minutes, and gigabytes
                    peer = Reference(network, x.shape, "adaptive", mode)
                    contenders[mode] = lambda peer=peer, x=x, y=y, method=method: peer.margins(x, y, EPSILON, method)
            title = f"{name}, {method}, {len(x)} images"
            found.append({"model": name, "method": method, "images": len(x), **compared(title, contenders)})
    return found


def smoothing() -> list[dict[str, Any]]:
    """One certificate of one image."""
    from tf_robust_sparse.certify import SmoothedClassifier

    found = []
    for name in FLAGS.models:
        (x, *_), _ = random_images(1)
        network = model(name)
        ours = SmoothedClassifier(network, 0.25, seed=FLAGS.seed)
        contenders = {"ours": lambda ours=ours, x=x: ours.certify(x, 100, FLAGS.n)}
        if FLAGS.smoothing_reference:
            contenders["pytorch"] = their_certificate(network, x)
        found.append({"model": name, "n": FLAGS.n, **compared(f"{name}, smoothing, n {FLAGS.n}", contenders)})
    return found


def their_certificate(network: Any, x: np.ndarray) -> Callable[[], Any]:
    """The public code, on the CPU, with the batch size that its script has."""
    import scipy.stats
    import torch

    from benchmarks.torch_copy import TorchCopy

    sys.path.insert(0, str(Path(FLAGS.smoothing_reference).resolve() / "code"))
    if not hasattr(scipy.stats, "binom_test"):  # gone from SciPy since; certify does not call it
        scipy.stats.binom_test = None
    from core import Smooth  # type: ignore[import-not-found]

    normal = torch.randn_like
    torch.randn_like = lambda like, device=None: normal(like)  # asks for "cuda" by name
    smoothed = Smooth(TorchCopy(network), 10, 0.25)
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 2, 0)))
    return lambda: smoothed.certify(pixels, 100, FLAGS.n, 0.001, 1000)


def model(name: str) -> Any:
    """A network of 32x32 images, of the same weights at every call."""
    import tf_robust_sparse as trs

    return trs.models.build(name, num_classes=10, padding_mode="symmetric", seed=FLAGS.seed)


def random_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    random = np.random.default_rng(FLAGS.seed)
    return random.random((count, 32, 32, 3), np.float32), random.integers(0, 10, count)


def compared(title: str, contenders: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Seconds of a call of the contenders in turn, after one call each that is not counted."""
    clock = time.perf_counter if FLAGS.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(FLAGS.rounds + 1):
        for name, run in contenders.items():
            time.sleep(_PAUSE)
            begin, calls = clock(), 0
            while not calls or (number and clock() - begin < _TURN):
                run()
                calls += 1
            if number:
                seconds[name].append((clock() - begin) / calls)
    found: dict[str, Any] = {"seconds": seconds}
    for word, of in (("median", statistics.median), ("least", min)):
        times = {name: of(values) for name, values in seconds.items()}
        peers = [value for name, value in times.items() if name != "ours"]
        found[word] = {**times, "ratio": min(peers) / times["ours"] if peers else float("nan")}
        row = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in times.items())
        print(f"{title:36s} {word:6s} {row}   the faster peer / ours: {found[word]['ratio']:.2f}", flush=True)
    return found


if __name__ == "__main__":
    app.run(main)
