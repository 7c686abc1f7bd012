"""Compares AutoAttack with its public PyTorch implementation, image by image and in time, on the same networks.

    git clone https://github.com/fra31/auto-attack
    python -m benchmarks.auto_attack --reference=auto-attack --network=weights.npz --architecture=cnn_a \\
        --data=cifar10 --data_dir=DIR --epsilon=2/255 --images=1000

A network is an .npz file of tensors in PyTorch's layout and order (kernel, bias, kernel, bias, ...) with its
architecture, or a `.keras` file of lenet5_caffe. Both frameworks get the same tensors; that their logits agree is
checked first. Printed are the robust accuracies after each attack, the images on which the two ensembles disagree, and
the times. PyTorch comes with the extra `benchmark`.
"""

import json
import os
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
flags.DEFINE_string("reference", None, "Folder of a clone of the public implementation; without it ours runs alone.")
flags.DEFINE_string("network", None, "File of the network.", required=True)
flags.DEFINE_enum("architecture", "cnn_a", ["cnn_a", "small", "lenet", "caffe"], "What the tensors are to be put into.")
flags.DEFINE_string("data", "cifar10", "Data set.")
flags.DEFINE_string("data_dir", None, "Folder of its files.")
flags.DEFINE_string("norm", "Linf", "Linf, L2 or L1.")
flags.DEFINE_string("epsilon", "8/255", "Radius in pixels of [0, 1].")
flags.DEFINE_integer("images", 1000, "Number of test images.", 1)
flags.DEFINE_integer("batch_size", 250, "Images in a batch.", 1)
flags.DEFINE_integer("seed", 0, "Seed of both.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

MEAN, DEVIATION = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
# Layers between which the tensors of the file are put: convolution (stride, padding), dense, and what needs no tensors.
CNN_A = [("conv", 2, 1), "relu", ("conv", 2, 1), "relu", "flatten", "dense", "relu", "dense"]
SMALL = [("conv", 2, 2), "relu", ("conv", 2, 2), "relu", "flatten", "dense", "relu", "dense"]
LENET = [("conv", 1, 1), "relu", "pool", ("conv", 1, 1), "relu", "pool", "flatten", "dense", "relu", "dense"]
CAFFE = [("conv", 1, 0), "pool", ("conv", 1, 0), "pool", "flatten", "dense", "relu", "dense"]
ARCHITECTURES = {"cnn_a": CNN_A, "small": SMALL, "lenet": LENET, "caffe": CAFFE}


def main(argv: list[str]) -> None:
    """Runs both and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    import tf_robust_sparse as trs

    images = trs.data.load(FLAGS.data, FLAGS.data_dir)
    x, y = images.test_images[: FLAGS.images], images.test_labels[: FLAGS.images].astype("int64")
    x = x.astype("float32") / 255 if x.dtype == np.uint8 else x
    epsilon = float(Fraction(FLAGS.epsilon))
    tensors = read_tensors(Path(FLAGS.network))
    normalized = x.shape[-1] == 3
    network = keras_network(tensors, x.shape[1:], normalized)
    record: dict[str, Any] = {"network": FLAGS.network, "norm": FLAGS.norm, "epsilon": epsilon, "images": len(x)}
    record["ours"] = ours(network, x, y, epsilon)
    if FLAGS.reference:
        record["reference"] = reference(torch_network(tensors, normalized), network, x, y, epsilon)
    show(record)
    if FLAGS.results_file:
        Path(FLAGS.results_file).write_text(json.dumps(record, indent=1))


def ours(network: Any, x: np.ndarray, y: np.ndarray, epsilon: float) -> dict[str, Any]:
    """Our evaluation, tracing included in the time."""
    import tf_robust_sparse as trs

    begin = time.perf_counter()
    attack = trs.evaluation.AutoAttack(
        network, FLAGS.norm, epsilon, seed=FLAGS.seed, batch_size=FLAGS.batch_size, verbose=False
    )
    result = attack.run_standard_evaluation(x, y)
    return {
        "clean": result["clean_accuracy"],
        "after": {name: row["robust_accuracy"] for name, row in result["attacks"].items()},
        "seconds_of": {name: row["seconds"] for name, row in result["attacks"].items()},
        "flags": result["flag_names"],
        "robust": (result["broken_by"] == -1).tolist(),
        "seconds": time.perf_counter() - begin,
    }


def reference(model: Any, network: Any, x: np.ndarray, y: np.ndarray, epsilon: float) -> dict[str, Any]:
    """The public implementation on the same images."""
    import contextlib
    import io
    import re

    import torch

    sys.path.insert(0, FLAGS.reference)
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    images, labels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 3, 1))), torch.from_numpy(y)
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(FLAGS.batch_size)]).numpy()
    expected = network.predict(x, verbose=0, batch_size=FLAGS.batch_size)
    difference = np.abs(logits - expected).max()
    if difference > 1e-3 * max(1.0, np.abs(expected).max()):
        raise SystemExit(f"The two networks differ by {difference:.2g} in their logits: is it of another architecture?")
    begin = time.perf_counter()
    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        attack = AutoAttack(model, norm=FLAGS.norm, eps=epsilon, seed=FLAGS.seed, device="cpu", verbose=True)
        found = attack.run_standard_evaluation(images, labels, bs=FLAGS.batch_size)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        answers = torch.cat([model(part) for part in found.split(FLAGS.batch_size)]).argmax(1)
    after = re.findall(r"robust accuracy after ([\w-]+): ([\d.]+)% \(total time ([\d.]+) s\)", words.getvalue())
    return {
        "clean": float((logits.argmax(1) == y).mean()),
        "after": {name.lower(): float(accuracy) / 100 for name, accuracy, _ in after},
        "total_seconds_after": {name.lower(): float(total) for name, _, total in after},
        "robust": (answers == labels).tolist(),
        "seconds": seconds,
    }


def show(record: dict[str, Any]) -> None:
    """Prints the table."""
    print(f"\n{FLAGS.network}, {FLAGS.norm}, epsilon {FLAGS.epsilon}, {record['images']} images")
    for who in ("ours", "reference"):
        if who in record:
            row = record[who]
            after = ", ".join(f"{name} {100 * value:.2f}" for name, value in row["after"].items())
            print(f"{who:10s} clean {100 * row['clean']:.2f}; {after}; {row['seconds']:.1f} s")
    if "reference" in record:
        a, b = np.array(record["ours"]["robust"]), np.array(record["reference"]["robust"])
        print(f"broken by ours alone: images {np.flatnonzero(~a & b).tolist()}")
        print(f"broken by the reference alone: images {np.flatnonzero(a & ~b).tolist()}")
        print(f"time of ours / reference: {record['ours']['seconds'] / record['reference']['seconds']:.2f}")
    print(f"flags of ours: {record['ours']['flags']}")


def read_tensors(path: Path) -> list[np.ndarray]:
    """Kernels and biases in PyTorch's layout, in order."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in file.files]
    import keras

    import tf_robust_sparse as trs

    tensors, last = [], None
    network = trs.load_network(path)
    for layer in trs.layers.kernel_layers(network):
        kernel = layer.compute_effective_kernel().numpy()
        if kernel.ndim == 4:
            last = kernel.shape[-1]
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            if last is not None:  # flattened with channels last; the networks here flatten with channels first
                side = int(np.sqrt(kernel.shape[0] // last))
                kernel = kernel.reshape(side, side, last, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                last = None
            kernel = kernel.T
        bias = np.zeros(kernel.shape[0], "float32") if layer.bias is None else keras.ops.convert_to_numpy(layer.bias)
        tensors += [kernel, bias]
    return tensors


def layers(tensors: list[np.ndarray]) -> list[Any]:
    """The layers of the architecture with their tensors: (kind, settings, kernel, bias)."""
    rest = iter(tensors)
    found = []
    for layer in ARCHITECTURES[FLAGS.architecture]:
        kind, *settings = (layer,) if isinstance(layer, str) else layer
        weights = (next(rest), next(rest)) if kind in ("conv", "dense") else ()
        if kind == "conv" and FLAGS.architecture == "lenet":
            settings = [1, weights[0].shape[-1] // 2]
        found.append((kind, settings, *weights))
    return found


def keras_network(tensors: list[np.ndarray], shape: tuple[int, ...], normalized: bool) -> Any:
    """The network of our layers, channels last; the rows of the first dense kernel are put in that order."""
    import keras

    from tf_robust_sparse.layers import MaxPooling2D, Normalization, PlainConv2D, PlainDense

    x = inputs = keras.Input(shape)
    if normalized:
        x = Normalization(mean=MEAN, variance=np.square(DEVIATION))(x)
    weights, flattened = [], None
    for kind, settings, *values in layers(tensors):
        if kind == "conv":
            stride, padding = settings
            side, size = values[0].shape[-1], x.shape[1]
            total = max((-(-size // stride) - 1) * stride + side - size, 0)  # what "same" pads
            is_same = padding > 0 and total == 2 * padding
            if padding and not is_same:
                x = keras.layers.ZeroPadding2D(padding)(x)
            layer = PlainConv2D(values[0].shape[0], side, stride, padding="same" if is_same else "valid")
            values = [values[0].transpose(2, 3, 1, 0), values[1]]
        elif kind == "dense":
            kernel = values[0].T
            if flattened is not None:
                height, width, channels = flattened
                kernel = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)
                flattened = None
            layer = PlainDense(kernel.shape[1])
            values = [kernel, values[1]]
        elif kind == "flatten":
            flattened = x.shape[1:]
            layer = keras.layers.Flatten()
        else:
            layer = keras.layers.ReLU() if kind == "relu" else MaxPooling2D(2)
        x = layer(x)
        weights.append((layer, values))
    for layer, values in weights:
        if values:
            layer.set_weights(values)
    return keras.Model(inputs, x)


def torch_network(tensors: list[np.ndarray], normalized: bool) -> Callable[[Any], Any]:
    """The network in PyTorch."""
    import torch
    import torch.nn.functional as F

    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    steps = [
        (kind, settings, *[torch.from_numpy(np.ascontiguousarray(value)) for value in values])
        for kind, settings, *values in layers(tensors)
    ]

    class Network(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            if normalized:
                x = (x - mean) / deviation
            for kind, settings, *values in steps:
                if kind == "conv":
                    x = F.conv2d(x, *values, stride=settings[0], padding=settings[1])
                elif kind == "dense":
                    x = F.linear(x, *values)
                elif kind == "relu":
                    x = F.relu(x)
                else:
                    x = x.flatten(1) if kind == "flatten" else F.max_pool2d(x, 2)
            return x

    return Network().eval()


if __name__ == "__main__":
    app.run(main)
