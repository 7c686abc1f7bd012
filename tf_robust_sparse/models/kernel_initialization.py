"""Random kernels as in the published code of other methods."""

import math
from collections.abc import Callable

import keras
import numpy as np

from tf_robust_sparse import layers
from tf_robust_sparse.layers.rewiring import RewiringKernel
from tf_robust_sparse.layers.signed import SignedKernel

# Initializers of PyTorch, HYDRA and binary sub-networks by their names, with the gain of ReLU unless another is given.
KERNEL_INITIALIZATIONS = (
    *("kaiming_normal", "kaiming_uniform", "kaiming_normal_fan_out", "signed_const", "pytorch"),
    *("kaiming_normal_fan_out_wrn", "kaiming_normal_fan_out_vgg", "kaiming_uniform_fan_out_vgg"),
    *("binary", "lottery_binary", "uniform_pm1", "signed_constant", "signed_constant_correct", "unsigned_constant"),
    *("unsigned_constant_correct", "kaiming_normal_correct", "xavier_normal", "xavier_constant", "standard"),
    "ibp",
)
_CONSTANTS = {  # name -> whether signs are random, and the factor of the fan if a fraction k stays
    "signed_const": (True, lambda k: 1.0),
    "signed_constant": (True, lambda k: 1 - k),
    "signed_constant_correct": (True, lambda k: k),
    "unsigned_constant": (False, lambda k: 1 - k),
    "unsigned_constant_correct": (False, lambda k: k),
}
_NORMALS = {"kaiming_normal": lambda k: 1 - k, "kaiming_normal_correct": lambda k: k}
# Convolutions are drawn by their fan-out; name -> how dense kernels are drawn.
_FAN_OUT = {
    "kaiming_normal_fan_out": "uniform",
    "kaiming_normal_fan_out_wrn": "uniform",
    "kaiming_normal_fan_out_vgg": "normal",
    "kaiming_uniform_fan_out_vgg": "normal",
}
_BIASES = {"pytorch": (2, 4), "kaiming_normal_fan_out": (2,)}  # name -> ranks of kernels with a nonzero bias
_SIGNS = ("binary", "lottery_binary", "xavier_constant", "signed_const", "signed_constant", "signed_constant_correct")


def initialize_kernels(
    network: keras.Model,
    distribution: str,
    seed: int = 0,
    mode: str = "fan_in",
    scaled_by: float | None = None,
    gain: float = math.sqrt(2),
) -> None:
    """Draws new values for every kernel of `network` and, for most distributions, sets biases to zero.

    Args:
        network: A network with plain, masked, subnet, binary or signed kernels; signed ones take a magnitude and signs.
        distribution: One of these, with `fan` chosen by `mode`:
            `"binary"`, `"lottery_binary"`: 1 or -1.
            `"uniform_pm1"`: uniform in [-1, 1].
            `"signed_constant_correct"`, `"unsigned_constant_correct"`: `gain / sqrt(fan)`, of random sign or positive.
            `"kaiming_normal_correct"`: normal of that standard deviation.
            `"signed_constant"`, `"unsigned_constant"`, `"kaiming_normal"`: the same, but see `scaled_by`.
            `"signed_const"`: `"signed_constant"` without `scaled_by`.
            `"kaiming_uniform"`: uniform with that variance.
            `"xavier_normal"`, `"xavier_constant"`: of standard deviation, or magnitude, `sqrt(2 / (fan_in + fan_out))`.
            `"ibp"`: normal of standard deviation sqrt(2 pi) / fan_in, so that intervals neither grow nor shrink from
            layer to layer; for certified training.
            `"standard"`: uniform in +-1 / sqrt(fan_in).
            `"pytorch"`: kernels and biases uniform in +-1 / sqrt(fan_in), PyTorch's default.
            `"kaiming_normal_fan_out"`: convolutions normal of variance 2 / (height * width * filters), dense kernels
            and biases uniform in +-1 / sqrt(fan_in); HYDRA's networks without batch norm, and ResNets of ImageNet.
            `"kaiming_normal_fan_out_wrn"`: the same with dense biases of zero; HYDRA's wide residual networks.
            `"kaiming_normal_fan_out_vgg"`, `"kaiming_uniform_fan_out_vgg"`: convolutions of the same variance, normal
            or uniform, dense kernels normal of standard deviation 0.01; HYDRA's VGG networks.
        seed: Integer from which the seed of each layer is derived.
        mode: `"fan_in"` or `"fan_out"`.
        scaled_by: The fraction k of all entries that stays. Distributions named `..._correct` multiply the fan by k;
            those without this suffix multiply it by `1 - k`, as in the code of binary sub-networks. `None` for no
            scaling.
        gain: Gain of the activation; `sqrt(2)` for ReLU.

    Raises:
        ValueError: if the distribution is unknown, a kernel cannot take it, or `scaled_by` leaves no fan.

    Reference: [He et al., 2015](https://arxiv.org/abs/1502.01852), section 2.2;
        [Ramanujan et al., 2020](https://arxiv.org/abs/1911.13299), section 3.1 (constants of random sign);
        [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 3 (signs);
        [Shi et al., 2021](https://arxiv.org/abs/2103.17268), section 4.1 (intervals).
    """
    if distribution not in KERNEL_INITIALIZATIONS:
        options = ", ".join(KERNEL_INITIALIZATIONS)
        raise ValueError(f"`distribution` must be one of {options}. Received: distribution={distribution!r}")
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'`mode` must be "fan_in" or "fan_out". Received: mode={mode!r}')
    if scaled_by is not None and not 0 < scaled_by <= 1:
        raise ValueError(f"`scaled_by` must be a fraction of the entries, in (0, 1]. Received: scaled_by={scaled_by!r}")
    found = layers.kernel_layers(network)
    for layer in found:
        if isinstance(layer, RewiringKernel if distribution in _SIGNS else (RewiringKernel, SignedKernel)):
            raise ValueError(
                f"The layer {layer.name} has no kernel to draw by {distribution}; build the network with plain, masked "
                f"or subnet kernels. Received: {type(layer).__name__}"
            )
    for number, layer in enumerate(found):
        random = np.random.default_rng([seed, number])
        shape = tuple(layer.stored_kernel.shape)
        kernel = _drawn(random, shape, distribution, mode, scaled_by, gain)
        bias = np.zeros(shape[-1:])
        if len(shape) in _BIASES.get(distribution, ()):
            bias = random.uniform(-1, 1, shape[-1:]) / math.sqrt(math.prod(shape[:-1]))
        if isinstance(layer, SignedKernel):
            layer.magnitude = float(np.float32(np.abs(kernel).max()))
            layer.positive.assign(kernel > 0)
        else:
            layer.kernel.assign(kernel.astype("float32"))
        if layer.bias is not None:
            layer.bias.assign(bias.astype("float32"))


def _drawn(
    random: np.random.Generator,
    shape: tuple[int, ...],
    distribution: str,
    mode: str,
    scaled_by: float | None,
    gain: float,
) -> np.ndarray:
    area = math.prod(shape[:-2])
    fan_in, fan_out = area * shape[-2], area * shape[-1]
    fan = float(fan_in if mode == "fan_in" else fan_out)
    if distribution in _CONSTANTS:
        signed, factor = _CONSTANTS[distribution]
        signs = np.sign(random.uniform(-1, 1, shape)) if signed else np.ones(shape)
        return signs * gain / math.sqrt(_scaled(fan, factor, scaled_by))
    if distribution in _NORMALS:
        return random.normal(size=shape) * gain / math.sqrt(_scaled(fan, _NORMALS[distribution], scaled_by))
    if distribution == "kaiming_uniform":
        return random.uniform(-1, 1, shape) * gain * math.sqrt(3 / fan)
    if distribution == "uniform_pm1":
        return random.uniform(-1, 1, shape)
    if distribution in ("binary", "lottery_binary"):
        return np.where(random.random(shape) < 0.5, -1.0, 1.0)
    if distribution == "ibp":
        return random.normal(size=shape) * math.sqrt(2 * math.pi) / fan_in
    if distribution == "xavier_normal":
        return random.normal(size=shape) * math.sqrt(2 / (fan_in + fan_out))
    if distribution == "xavier_constant":
        return np.where(random.random(shape) < 0.5, -1.0, 1.0) * math.sqrt(2 / (fan_in + fan_out))
    if distribution in _FAN_OUT and len(shape) == 4:
        if distribution.startswith("kaiming_uniform"):
            return random.uniform(-1, 1, shape) * math.sqrt(6 / fan_out)
        return random.normal(size=shape) * math.sqrt(2 / fan_out)
    if _FAN_OUT.get(distribution) == "normal":
        return random.normal(size=shape) * 0.01
    return random.uniform(-1, 1, shape) / math.sqrt(fan_in)


def _scaled(fan: float, factor: Callable[[float], float], scaled_by: float | None) -> float:
    scaled = fan if scaled_by is None else fan * factor(scaled_by)
    if not scaled > 0:
        raise ValueError(f"`scaled_by` makes the fan 0. Received: scaled_by={scaled_by!r}")
    return scaled
