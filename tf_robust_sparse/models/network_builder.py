"""The base of all networks: kernels in the chosen parametrization, batch norm, and checks of arguments.

Arguments common to every builder:

- num_classes: number of logits, at least 1.
- input_shape: `(height, width, channels)` of the images, values in [0, 1].
- kernel: a key of `tf_robust_sparse.layers.KERNELS`, the parametrization. Only the class of the kernel layers depends
  on it: dense and sparse networks have the same layers under the same names.
- connectivity: fraction of all kernel entries to be connected, in (0, 1]. `kernel="rewiring"` needs it to choose how
  many entries of each layer are connected at the start; `kernel="subnet"` and `"signed"` keep that fraction of each
  kernel, all of it by default; `kernel="learned_rate"` begins with a tenth of each kernel, if that is more, and never
  keeps less than a tenth of the fraction; other parametrizations start dense and ignore it.
- padding_mode: `"tf_same"` pads a strided convolution as TensorFlow does (3x3, stride 2, even size: 0 before, 1
  after), `"symmetric"` as PyTorch's `padding=1` does (1 and 1). Weights cannot be moved between the two.
- seed: integer from which the seed of each layer is derived, so that equal seeds give equal networks; `None` uses the
  generators that `keras.utils.set_random_seed` sets.
- synchronized_batch_norm: whether batch statistics are taken over all replicas.
- variant: a `Variant`, only for residual networks.
- name: name of the network; layer names do not depend on it.

The last layer computes in float32 under every dtype policy, so logits are float32.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse import layers
from tf_robust_sparse.layers.learned_rates import first_fractions
from tf_robust_sparse.layers.subnet import default_scores

PADDING_MODES = ("tf_same", "symmetric")
# Mean and standard deviation of red, green and blue, by which a network normalizes pixels in [0, 1].
NORMALIZATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


ACTIVATIONS = ("relu", "silu")
_activation = contextvars.ContextVar("activation", default="relu")  # of the networks that are being built


@contextlib.contextmanager
def activated_by(activation: str) -> Iterator[None]:
    """Has networks that are built inside the block activate by another function than ReLU.

    Args:
        activation: One of `ACTIVATIONS`.

    Raises:
        ValueError: if it is none of them.
    """
    if activation not in ACTIVATIONS:
        options = ", ".join(ACTIVATIONS)
        raise ValueError(f"`activation` must be one of {options}. Received: activation={activation!r}")
    token = _activation.set(activation)
    try:
        yield
    finally:
        _activation.reset(token)


class Variant(NamedTuple):
    """How a residual network differs from the usual one.

    Attributes:
        normalization: A key of `NORMALIZATIONS`, for images with three channels; `None` for the network's default.
        affine_batch_norm: Whether batch norm scales and shifts.
        classifier_bias: Whether the classifier has a bias.
        final_batch_norm: Whether batch norm follows the classifier, so that the logits of a batch have mean 0 and
            variance 1. Otherwise a network of signs has huge logits.
        leaky_relu_slope: Slope of the activations of basic blocks for negative inputs; 0 is ReLU.
        first_kernel, last_kernel: Parametrization of the stem and the classifier; `None` for that of the other layers.
        stochastic: Whether the signs of `kernel="binary"` are drawn.
        gates: Whether the channels inside each block have gates, `BetaBernoulliDropout` between a convolution and its
            batch norm. The sum that all blocks of a stage share has none, so closed channels can be removed.
        gate_threshold: Threshold of the gates.
    """

    normalization: str | None = None
    affine_batch_norm: bool = True
    classifier_bias: bool = True
    final_batch_norm: bool = False
    leaky_relu_slope: float = 0.0
    first_kernel: str | None = None
    last_kernel: str | None = None
    stochastic: bool = False
    gates: bool = False
    gate_threshold: float = 1e-3

    def check(self) -> None:
        """Checks the values.

        Raises:
            ValueError: if one is unknown or out of its range.
        """
        if self.normalization is not None and self.normalization not in NORMALIZATIONS:
            options = ", ".join(NORMALIZATIONS)
            raise ValueError(f"`normalization` must be one of {options}. Received: {self.normalization!r}")
        if not 0 <= self.leaky_relu_slope < 1:
            raise ValueError(f"`leaky_relu_slope` must be in [0, 1). Received: {self.leaky_relu_slope!r}")
        for name in ("first_kernel", "last_kernel"):
            value = getattr(self, name)
            if value not in (None, *layers.KERNELS):
                raise ValueError(f"`{name}` must be one of {', '.join(layers.KERNELS)}. Received: {name}={value!r}")


USUAL = Variant()


class NetworkBuilder:
    """Builds a network layer by layer, in forward order.

    Args:
        network: Name of the architecture, for messages.
        smallest: Smallest height and width of the images.
        num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm: see the module.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        network: str,
        smallest: int,
        num_classes: int,
        input_shape: Sequence[int],
        kernel: str,
        connectivity: float | None,
        padding_mode: str,
        seed: int | None,
        synchronized_batch_norm: bool,
        variant: Variant | None = None,
    ) -> None:
        if kernel not in layers.KERNELS:
            raise ValueError(f"`kernel` must be one of {', '.join(layers.KERNELS)}. Received: kernel={kernel!r}")
        if padding_mode not in PADDING_MODES:
            options = ", ".join(PADDING_MODES)
            raise ValueError(f"`padding_mode` must be one of {options}. Received: padding_mode={padding_mode!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0):
            raise ValueError(f"`seed` must be a non-negative integer or None. Received: seed={seed!r}")
        self.variant = USUAL if variant is None else variant
        self.variant.check()
        self.num_classes = _num_classes(num_classes)
        self.inputs = keras.Input(_image_shape(network, smallest, input_shape), name="pixels")
        self.connectivity = _connectivity(kernel, connectivity)
        self._kernel = kernel
        self._symmetric = padding_mode == "symmetric"
        self._seed = seed
        self._synchronized = bool(synchronized_batch_norm)
        self._made = 0

    @property
    def half(self) -> float:
        """Half of the global connectivity, with which the large layers of the published networks start."""
        return 0.5 * self.connectivity

    def conv(
        self,
        x: keras.KerasTensor,
        filters: int,
        size: int,
        name: str,
        initial_connectivity: float,
        strides: int = 1,
        padding: str = "same",
        **kwargs: Any,
    ) -> keras.KerasTensor:
        """Convolves `x` `(batch, height, width, channels)`; without a bias unless `use_bias=True`."""
        if padding == "same" and strides > 1 and self._symmetric:
            if size > 2:
                x = keras.layers.ZeroPadding2D((size - 1) // 2, "channels_last", name=f"{name}_padding")(x)
            padding = "valid"
        kwargs.setdefault("use_bias", False)
        kwargs = _with_activation(kwargs)
        kernel = kwargs.pop("kernel", None) or self._kernel
        form = self._form(initial_connectivity, kernel)
        conv = layers.KERNELS[kernel][1]
        return conv(filters, size, strides=strides, padding=padding, name=name, **form, **kwargs)(x)

    def dense(
        self, x: keras.KerasTensor, units: int, name: str, initial_connectivity: float, **kwargs: Any
    ) -> keras.KerasTensor:
        """Multiplies `x` `(batch, input_dim)` and adds a bias."""
        kwargs = _with_activation(kwargs)
        kernel = kwargs.pop("kernel", None) or self._kernel
        dense = layers.KERNELS[kernel][0]
        return dense(units, name=name, **self._form(initial_connectivity, kernel), **kwargs)(x)

    def classifier(self, x: keras.KerasTensor, initial_connectivity: float, **kwargs: Any) -> keras.KerasTensor:
        """Returns the logits `(batch, num_classes)` of the features `x`, in float32 under every dtype policy."""
        options: dict[str, Any] = {"dtype": "float32", "kernel": self.variant.last_kernel, **kwargs}
        if not self.variant.classifier_bias:
            options["use_bias"] = False
        x = self.dense(x, self.num_classes, "classifier", initial_connectivity, **options)
        return self.batch_norm(x, "classifier_bn", dtype="float32") if self.variant.final_batch_norm else x

    def batch_norm(self, x: keras.KerasTensor, name: str, **kwargs: Any) -> keras.KerasTensor:
        """Normalizes `x`; by default the moving statistics have momentum 0.9."""
        if not self.variant.affine_batch_norm:
            kwargs |= {"scale": False, "center": False}
        kwargs = {"momentum": 0.9, "epsilon": 1e-5, **kwargs}
        return layers.BatchNormalization(synchronized=self._synchronized, name=name, **kwargs)(x)

    def gate(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Multiplies each channel of `x` by a gate, mostly open at first, if the variant has gates."""
        if not self.variant.gates:
            return x
        return layers.BetaBernoulliDropout(2.0, self.variant.gate_threshold, name=name)(x)

    def relu(self, x: keras.KerasTensor, name: str, leaky: bool = False) -> keras.KerasTensor:
        """Returns `max(x, 0)`, plus a multiple of `min(x, 0)` if it is `leaky` and the variant has a slope.

        Inside `activated_by`, the other activation of `x`.
        """
        slope = self.variant.leaky_relu_slope if leaky else 0.0
        if _activation.get() != "relu":
            if slope:
                raise ValueError(
                    f"`leaky_relu_slope` is of ReLU; pass 0 with activation={_activation.get()!r}. Received: {slope}"
                )
            return keras.layers.Activation(_activation.get(), name=name)(x)
        return keras.layers.ReLU(negative_slope=slope, name=name)(x)

    def normalized(self, usual: str | None = None) -> keras.KerasTensor:
        """Returns the images; those with three channels are normalized by the variant or else by `usual`."""
        name = self.variant.normalization or usual
        if name is None or self.inputs.shape[-1] != 3:
            return self.inputs
        mean, deviation = NORMALIZATIONS[name]
        variance = [each**2 for each in deviation]
        return layers.Normalization(mean=list(mean), variance=variance, name="normalization")(self.inputs)

    def max_pool(self, x: keras.KerasTensor, size: int, strides: int, name: str) -> keras.KerasTensor:
        """Takes the maximum of windows that extend over the border; values must not be negative."""
        if self._symmetric and _activation.get() != "relu":
            raise ValueError(
                f'Pooling over a border of zeros needs values of at least 0; pass padding_mode="tf_same" with '
                f"activation={_activation.get()!r}"
            )
        if self._symmetric:
            x = keras.layers.ZeroPadding2D((size - 1) // 2, "channels_last", name=f"{name}_padding")(x)
        return layers.MaxPooling2D(size, strides, "valid" if self._symmetric else "same", name=name)(x)

    def average_pool(self, x: keras.KerasTensor, size: int) -> keras.KerasTensor:
        """Averages windows of `size` x `size`, or the whole map if it is smaller, and flattens."""
        window = tuple(min(size, length) for length in x.shape[1:3])
        x = keras.layers.AveragePooling2D(window, data_format="channels_last", name="pool")(x)
        return keras.layers.Flatten("channels_last", name="flatten")(x)

    def model(self, logits: keras.KerasTensor, name: str) -> keras.Model:
        """Returns the finished network."""
        return keras.Model(self.inputs, logits, name=name)

    def _form(self, initial_connectivity: float, kernel: str) -> dict[str, Any]:
        """Returns the arguments that depend on the parametrization."""
        seeds: list[int | None] = [None, None]
        if self._seed is not None:
            words = np.random.SeedSequence([int(self._seed), self._made]).generate_state(2)
            seeds = [int(word) >> 1 for word in words]
        self._made += 1
        if kernel == "rewiring":
            return {"seed": seeds[0], "initial_connectivity": initial_connectivity}
        form: dict[str, Any] = {"kernel_initializer": keras.initializers.HeNormal(seed=seeds[0])}
        if kernel == "bayesian":  # means in +-1/sqrt(fan_in)
            form["kernel_initializer"] = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seeds[0])
        if kernel == "binary":
            form["stochastic"] = self.variant.stochastic
        if kernel in ("subnet", "signed", "learned_rate"):
            form["keep_fraction"] = self.connectivity
            if kernel == "learned_rate":
                form |= first_fractions(self.connectivity)
            if seeds[1] is not None:
                form["scores_initializer"] = default_scores(seeds[1])
        return form


def _with_activation(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "activation": _activation.get()} if arguments.get("activation") == "relu" else arguments


def _num_classes(num_classes: Any) -> int:
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or num_classes < 1:
        raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes!r}")
    return int(num_classes)


def _image_shape(network: str, smallest: int, shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(shape)  # works for a tf.TensorShape, too
    except (TypeError, ValueError):  # not a sequence, or a TensorShape of unknown rank
        sizes = ()
    if len(sizes) != 3 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in sizes):
        raise ValueError(
            "`input_shape` must be the (height, width, channels) of the images, three positive integers. "
            f"Received: input_shape={shape!r}"
        )
    if min(sizes[:2]) < smallest:
        raise ValueError(
            f"{network} needs images of at least {smallest}x{smallest} pixels; choose a smaller network or resize "
            f"the images. Received: input_shape={shape!r}"
        )
    return tuple(int(size) for size in sizes)


def _connectivity(kernel: str, connectivity: Any) -> float:
    if connectivity is None:
        if kernel == "rewiring":
            raise ValueError(
                '`connectivity` is needed with kernel="rewiring", because it sets how many entries of each layer are '
                "connected at the start; for 99% sparsity pass connectivity=0.01. Received: connectivity=None"
            )
        return 1.0
    if isinstance(connectivity, bool) or not isinstance(connectivity, (int, float)) or not 0 < connectivity <= 1:
        raise ValueError(
            "`connectivity` is the fraction of kernel entries connected, in (0, 1]; for 99% sparsity pass "
            f"connectivity=0.01. Received: connectivity={connectivity!r}"
        )
    return float(connectivity)
