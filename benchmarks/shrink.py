"""Times networks before and after `shrink`, in one run.

    python -m benchmarks.shrink --case=lenet
    python -m benchmarks.shrink --case=vgg16 --batch_sizes=1,16

Cases:

- lenet: `lenet_conv` with 14, 27, 120 and 56 gates open of 20, 50, 800 and 500, as in the published table of neural
  pruning (speed-up 2.80 by its formula);
- vgg16: `vgg16` with masked kernels, each with as many connections as connectivity sampling starts with at 1 %. Which
  ones: the largest, after each channel has drawn a scale (log-normal, `--spread`) for the kernels that make it and read
  it, in place of what training makes of channels; with `--spread=0` they are alike, and hardly one dies;
- vgg16_channels: `vgg16`, a third of the channels of each kernel kept;
- mobilenet_v2: MobileNetV2 of Keras for images of 96x96, half of the channels of each kernel kept.

Latency is the median of compiled calls on random pixels; `before` is that of the network of plain Keras layers with its
zeros. The ratio of latencies is printed next to that of multiply-adds.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from tf_robust_sparse.evaluation.latency import median_latency

FLAGS = flags.FLAGS
CASES = ("lenet", "vgg16", "vgg16_channels", "mobilenet_v2")
flags.DEFINE_multi_enum("case", ["lenet"], CASES, "Which networks.")
flags.DEFINE_list("batch_sizes", ["1", "16", "64"], "Images per call.")
flags.DEFINE_float("seconds", 3.0, "How long each network runs per batch size.", lower_bound=0.01)
flags.DEFINE_float("connectivity", 0.01, "Of vgg16.", 0, 1)
flags.DEFINE_float("spread", 1.0, "Of vgg16: standard deviation of the logarithm of channel scales.", lower_bound=0)
flags.DEFINE_bool("fold_batch_norm", True, "Whether shrink folds batch norm.")
flags.DEFINE_integer("seed", 0, "Seed of weights, gates and scales.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

UNITS = (14, 27, 120, 56)


def main(argv: list[str]) -> None:
    """Builds, shrinks, times, prints a table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    import numpy as np

    import tf_robust_sparse as trs

    results = {}
    print(f"{'':16s}batch   before ms    after ms  latency  multiply-adds  share")
    for case in FLAGS.case:
        network = {"lenet": lenet, "vgg16": vgg16, "vgg16_channels": vgg16_channels, "mobilenet_v2": mobilenet_v2}[
            case
        ]()
        small, report = trs.shrink(network, FLAGS.fold_batch_norm)
        x = np.random.default_rng(0).random((4, *network.input_shape[1:]), "float32")
        expected, found = (each(x, training=False).numpy() for each in (network, small))
        assert np.abs(expected - found).max() <= 1e-5 * np.abs(expected).max()
        work = report.before.multiply_adds / report.after.multiply_adds
        plain = trs.saving.strip(network)
        rows = {}
        for size in map(int, FLAGS.batch_sizes):
            seconds = median_latency({"before": plain, "after": small}, size, FLAGS.seconds)
            gain = seconds["before"] / seconds["after"]
            rows[size] = seconds
            print(
                f"{case:16s}{size:5d}{1e3 * seconds['before']:12.3f}{1e3 * seconds['after']:12.3f}{gain:9.2f}"
                f"{work:15.2f}{gain / work:7.2f}",
                flush=True,
            )
        results[case] = {"latency": rows, **report.as_dict()}
        kept = {name: f"{len(channels)} of {report.channels[name]}" for name, channels in report.kept.items()}
        print(", ".join(f"{name} {words}" for name, words in kept.items()))
        before, after = report.before, report.after
        print(
            f"parameters {before.parameters} -> {after.parameters}, non-zero {before.nonzero} -> {after.nonzero}, "
            f"multiply-adds {before.multiply_adds} -> {after.multiply_adds}, "
            f"file {before.file_bytes / 2**20:.2f} -> {after.file_bytes / 2**20:.2f} MiB"
        )
    if FLAGS.results_file:
        with open(FLAGS.results_file, "w") as file:  # noqa: PTH123
            json.dump(results, file, indent=1)


def lenet():
    """LeNet with the published numbers of open gates."""
    import numpy as np

    import tf_robust_sparse as trs

    network = trs.models.lenet_conv(gates=True, seed=FLAGS.seed)
    random = np.random.default_rng(FLAGS.seed)
    channels = None
    for gate, kept in zip(trs.layers.gates(network), UNITS, strict=True):
        units = gate.a_raw.shape[0]
        places = np.arange(units)
        if units == 800:  # features of channels that are open
            places = np.flatnonzero(np.isin(places % 50, channels))
        chosen = random.choice(places, kept, replace=False)
        channels = chosen
        gate.a_raw.assign(np.where(np.isin(np.arange(units), chosen), 2.0, -12.0))
    return network


def vgg16():
    """VGG16 of few connections, whose channels are of different size."""
    import numpy as np

    import tf_robust_sparse as trs

    network = trs.models.vgg16(kernel="masked", seed=FLAGS.seed)
    start = trs.models.vgg16(kernel="rewiring", connectivity=FLAGS.connectivity, seed=FLAGS.seed)
    random = np.random.default_rng(FLAGS.seed)
    pairs = zip(trs.layers.kernel_layers(network), trs.layers.kernel_layers(start), strict=True)
    before = np.ones(3)
    for layer, rewiring in pairs:
        kernel = layer.kernel.numpy()
        after = np.exp(FLAGS.spread * random.normal(size=kernel.shape[-1]))
        if layer.name == "classifier":
            after[:] = 1
        if len(before) != kernel.shape[-2]:  # the features of flattened channels
            before = np.tile(before, kernel.shape[-2] // len(before))
        sizes = np.abs(kernel) * before[:, np.newaxis] * after
        kept = int(np.count_nonzero(rewiring.effective_kernel))
        layer.kernel_mask.assign(sizes >= np.partition(sizes.ravel(), -kept)[-kept])
        before = after
    _move_batch_norm(network, random)
    return network


def vgg16_channels():
    """VGG16 with a third of its channels."""
    import numpy as np

    import tf_robust_sparse as trs

    network = trs.models.vgg16(kernel="masked", seed=FLAGS.seed)
    trs.sparsity.ChannelMagnitudePruning(1 / 3).attach(network)
    _move_batch_norm(network, np.random.default_rng(FLAGS.seed))
    return network


def mobilenet_v2():
    """MobileNetV2 of Keras with half of its channels."""
    import keras
    import numpy as np

    import tf_robust_sparse as trs

    keras.utils.set_random_seed(FLAGS.seed)
    network = keras.applications.MobileNetV2(
        weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None
    )
    trs.sparsify(network, 0.5, trs.sparsity.ChannelMagnitudePruning())
    _move_batch_norm(network, np.random.default_rng(FLAGS.seed))
    return network


def _move_batch_norm(network, random):
    """Gives batch norm statistics as training leaves them, so that pruned channels have constants of both signs."""
    import keras

    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    random.uniform(0.5, 1.5, gamma.shape),
                    random.normal(0, 0.3, beta.shape),
                    random.normal(0, 0.1, mean.shape),
                    random.uniform(0.1, 1, variance.shape),
                ]
            )


if __name__ == "__main__":
    app.run(main)
