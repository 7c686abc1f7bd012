"""Initial scores of subnet kernels: from the kernels, at random, or by sensitivity (SNIP)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.layers.classifier import check_classifier
from tf_robust_sparse.layers.signed import SignedKernel
from tf_robust_sparse.layers.subnet import SubnetKernel
from tf_robust_sparse.sparsity.prunable import find_parametrized

# Distributions of independent scores, with the variances of PyTorch's initializers of the same names.
RANDOM_SCORES = {
    "default": (1 / 3, "fan_in", "uniform"),
    "kaiming_normal": (2.0, "fan_in", "untruncated_normal"),
    "kaiming_uniform": (2.0, "fan_in", "uniform"),
    "xavier_normal": (2.0, "fan_avg", "untruncated_normal"),  # with the gain of ReLU, sqrt(2)
    "xavier_uniform": (2.0, "fan_avg", "uniform"),
}

FAN_SCALED = ("all", "none", "except_last", "only_last")
FANS = ("fan_in", "fan_out")


def subnet_layers(network: keras.Model) -> list[Any]:
    """Returns the layers of `network` whose kernels are chosen by scores and not frozen, in forward order.

    Raises:
        ValueError: if there is none, or there are prunable kernels of another parametrization.
    """
    return [kernel.layer for kernel in find_parametrized(network, has_scores, "Scores need", "subnet")]


def scored_layers(network: keras.Model) -> list[Any]:
    """Returns the layers of `network` whose kernels are chosen by scores, including frozen ones, in forward order."""
    return [layer for layer in layers.kernel_layers(network) if has_scores(layer)]


def has_scores(layer: Any) -> bool:
    """Returns whether scores choose the entries of a layer's kernel."""
    return isinstance(layer, SubnetKernel)


def scaled_scores(network: keras.Model) -> None:
    """Sets the scores of every subnet kernel to `sqrt(6 / fan_in) * kernel / max(abs(kernel))`.

    Entries are then ranked by magnitude: learning starts from magnitude pruning, and scores that are never learned are
    magnitude pruning (LWM, least weight magnitude).

    Raises:
        ValueError: if the network has no subnet kernel, or a kernel is zero everywhere.

    Reference: [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), section 3.1.
    """
    for layer in _layers_with_kernels(network):
        kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel))
        largest = np.abs(kernel).max()
        if not largest > 0:
            raise ValueError(
                f"The kernel of {layer.name} is zero everywhere, so its entries cannot be ranked; load the weights of "
                "a trained network first."
            )
        fan_in = math.prod(kernel.shape[:-1])
        layer.scores.assign(math.sqrt(6 / fan_in) * kernel / largest)


def random_scores(network: keras.Model, distribution: str = "default", seed: int = 0) -> None:
    """Draws new scores for every subnet kernel.

    Args:
        network: A network with subnet kernels.
        distribution: A key of `RANDOM_SCORES`.
        seed: Integer from which the seed of each layer is derived.

    Raises:
        ValueError: if the distribution is unknown, or the network has no subnet kernel.
    """
    if distribution not in RANDOM_SCORES:
        raise ValueError(
            f"`distribution` must be one of {', '.join(RANDOM_SCORES)}. Received: distribution={distribution!r}"
        )
    scale, mode, shape = RANDOM_SCORES[distribution]
    for number, layer in enumerate(subnet_layers(network)):
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1
        layer.scores.assign(keras.initializers.VarianceScaling(scale, mode, shape, seed=own)(layer.scores.shape))


def uniform_scores(
    network: keras.Model, scale: float = 1.0, fan_scaled: str = "none", mode: str = "fan_in", seed: int = 0
) -> None:
    """Draws new scores for every subnet kernel, uniform in `+-scale` or `+-scale / sqrt(fan)`.

    With a small `scale`, scores are as small as their updates, so masks change quickly.

    Args:
        network: A network with subnet kernels.
        scale: Positive.
        fan_scaled: Which kernels have their scores divided by `sqrt(fan)`: `"all"`, `"none"`, `"except_last"` (all
            but the classifier) or `"only_last"`.
        mode: `"fan_in"` (height * width * channels) or `"fan_out"` (height * width * filters).
        seed: Integer from which the seed of each layer is derived.

    Raises:
        ValueError: if an argument is out of its range, or the network has no subnet kernel.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 4.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"`scale` must be the largest absolute score, a positive number. Received: scale={scale!r}")
    if fan_scaled not in FAN_SCALED:
        raise ValueError(f"`fan_scaled` must be one of {', '.join(FAN_SCALED)}. Received: fan_scaled={fan_scaled!r}")
    if mode not in FANS:
        raise ValueError(f"`mode` must be one of {', '.join(FANS)}. Received: mode={mode!r}")
    found = subnet_layers(network)
    last = layers.kernel_layers(network)[-1]
    for number, layer in enumerate(found):
        shape = tuple(layer.scores.shape)
        divided = fan_scaled == "all" or fan_scaled == ("only_last" if layer is last else "except_last")
        bound = scale / math.sqrt(fan(shape, mode)) if divided else scale
        random = np.random.default_rng([seed, number, 0x5C0])
        layer.scores.assign((bound * random.uniform(-1, 1, shape)).astype("float32"))


def fan(shape: Sequence[int], mode: str) -> int:
    """Returns how many entries of a kernel `(..., in, out)` feed one output, or for `"fan_out"` read one input."""
    return math.prod(shape[:-1]) if mode == "fan_in" else math.prod(shape[:-2]) * shape[-1]


def snip_scores(network: keras.Model, batches: Iterable[tuple[Any, Any]]) -> None:
    """Sets the scores to the sensitivity of the loss of the dense network: `abs(kernel * dL/dkernel)`.

    L is the cross-entropy on clean images, with batch norm in training mode. Gradients are averaged over the batches;
    the statistics of batch norm do not change.

    Args:
        network: A network with subnet kernels, freshly initialized.
        batches: (images, labels); one batch in the published method.

    Raises:
        ValueError: if there is no batch, images or labels do not pass `data.checks`, or the network has no subnet
            kernel.

    Reference: [Lee et al., 2019](https://arxiv.org/abs/1810.02340), section 4.
    """
    check_classifier(network)
    found = _layers_with_kernels(network)
    kernels = [layer.kernel for layer in found]
    untouched = [(variable, tf.identity(variable)) for variable in network.non_trainable_variables]
    fractions = [layer.keep_fraction for layer in found]
    try:
        for layer in found:
            layer.keep_fraction = 1.0

        @tf.function(reduce_retracing=True, autograph=False)
        def sensitivities(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([kernel.value for kernel in kernels])
                logits = tf.cast(network(x, training=True), tf.float32)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            return tape.gradient(loss, [kernel.value for kernel in kernels])

        total, number = [np.zeros(kernel.shape, np.float32) for kernel in kernels], 0
        for x, y in batches:
            x = checked_images(x)
            y = checked_labels(y, len(x), network.output_shape[-1])
            for sum_, gradient in zip(total, sensitivities(tf.constant(x), tf.constant(y)), strict=True):
                sum_ += gradient.numpy()
            number += 1
    finally:
        for layer, fraction in zip(found, fractions, strict=True):
            layer.keep_fraction = fraction
        for variable, value in untouched:
            variable.assign(value)
    if not number:
        raise ValueError("`batches` must hold at least one batch of (images, labels). Received: an empty iterable")
    for layer, gradient in zip(found, total, strict=True):
        layer.scores.assign(np.abs(keras.ops.convert_to_numpy(layer.kernel) * gradient / number))


def rescale_kernels(network: keras.Model) -> None:
    """Multiplies every subnet kernel by `1 / sqrt(keep_fraction)`, so that pruning does not shrink the outputs.

    It is meant for networks without batch norm that are trained sparse from scratch.
    """
    for layer in _layers_with_kernels(network):
        layer.kernel.assign(layer.kernel / math.sqrt(layer.keep_fraction))


def _layers_with_kernels(network: keras.Model) -> list[Any]:
    """Returns the layers chosen by scores, after checking that the entries of their kernels differ in magnitude."""
    found = subnet_layers(network)
    for layer in found:
        if isinstance(layer, SignedKernel):
            raise ValueError(
                f"The kernel of {layer.name} has one magnitude, so its entries cannot be ranked; build the network "
                f'with kernel="subnet", or draw the scores. Received: {type(layer).__name__}'
            )
    return found
