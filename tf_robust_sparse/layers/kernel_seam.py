"""The one place through which every kernel, convolution and matrix product of the toolkit passes.

Adversarial training reads each kernel a dozen times per optimization step (ten attack steps, one or two training
passes) while the weights do not change. `cached_kernels` computes every effective kernel (mask, `sign * relu(theta)`,
cast to the compute dtype) once, for all forward passes inside the block. `folded_kernels` does more for the attack,
whose batch norm runs in inference mode and which needs no gradient of the weights. It multiplies the batch norm scale
into the preceding kernel, so that the normalization costs nothing in the attack's loop, and convolves with a sparse
matrix where a kernel has so few connections that this is faster.

The cache lives in thread-local storage, not on the layers: the replica threads of `tf.distribute` interleave while they
trace, and each must see its own tensors.

A faster implementation of `convolve` or `multiply` reaches every layer at once.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_robust_sparse.layers import few_channels
from tf_robust_sparse.layers.engine_seam import network_engine
from tf_robust_sparse.layers.protocols import HasEffectiveKernel, IsGate
from tf_robust_sparse.layers.sparse_convolution import SparseKernel, is_faster, sparse_convolve, sparse_kernel
from tf_robust_sparse.layers.topology import chains


class CachedKernel(NamedTuple):
    """A layer's effective kernel and bias, in the compute dtype of the layer; `bias` may be `None`."""

    kernel: tf.Tensor | SparseKernel
    bias: tf.Tensor | None


class _Block(threading.local):
    """What the blocks around this thread hold, by layer: float32 kernels, compute forms, gates, folded layers.

    `engines` maps networks that the engine computes to a function from images to logits, which may return `None`.
    """

    def __init__(self) -> None:
        self.kernels: dict[int, tf.Tensor] = {}
        self.cached: dict[int, CachedKernel] = {}
        self.scales: dict[int, tf.Tensor] = {}
        self.folded: frozenset[int] = frozenset()
        self.engines: dict[int, Callable[[tf.Tensor], tf.Tensor | None]] = {}


_block = _Block()


def convolve(x: tf.Tensor, kernel: tf.Tensor | SparseKernel, strides: tuple[int, int], padding: str) -> tf.Tensor:
    """Returns the 2-D convolution of `x` `(batch, height, width, channels)` with an HWIO `kernel`."""
    if isinstance(kernel, SparseKernel):  # `_sparse_is_faster` admits stride 1 and padding "same" only
        return sparse_convolve(x, kernel)
    if few_channels.is_faster(x, kernel, strides, padding):
        return few_channels.convolve(x, kernel, strides, padding)
    return tf.nn.conv2d(x, kernel, strides=list(strides), padding=padding.upper())


def multiply(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Returns the matrix product of `x` `(batch, input_dim)` and `kernel` `(input_dim, units)`."""
    return tf.matmul(x, kernel)


def inference_logits(network: keras.Model, x: tf.Tensor) -> Any:
    """Returns the output of `network` in inference mode; inside `folded_kernels` the engine computes it if it can."""
    engine = _block.engines.get(id(network))
    logits = None if engine is None else engine(x)
    return network(x, training=False) if logits is None else logits


def kernel_layers(network: keras.Model) -> list[Any]:
    """Returns the layers of `network` that hold an effective kernel, in forward order, nested models included."""
    found = {id(layer): layer for layer in all_layers(network) if isinstance(layer, HasEffectiveKernel)}
    return list(found.values())


def effective_kernel(layer: Any) -> tf.Tensor:
    """Returns the float32 effective kernel of `layer`; inside `cached_kernels`, the cached one."""
    kernel = _block.kernels.get(id(layer))
    return layer.compute_effective_kernel() if kernel is None else kernel


def kernel_l1(layer: Any) -> tf.Tensor:
    """Returns the L1 norm of the effective kernel of `layer`; for a stacked layer, that of each member.

    A scalar, or `(members,)` if the kernel has a leading axis of `members` kernels.
    """
    sizes = tf.abs(effective_kernel(layer))
    members = getattr(layer, "members", None)
    return tf.reduce_sum(sizes) if members is None else tf.reduce_sum(tf.reshape(sizes, (members, -1)), axis=1)


def kernel_and_bias(layer: Any) -> CachedKernel:
    """Returns the kernel and bias of the forward pass of `layer`, in its compute dtype."""
    cached = _block.cached.get(id(layer))
    return _compute_form(layer, effective_kernel(layer)) if cached is None else cached


def inference_scale(layer: Any) -> tf.Tensor:
    """Returns the factors of the gates of `layer` in inference; inside `folded_kernels`, the cached ones."""
    scale = _block.scales.get(id(layer))
    return layer.inference_scale() if scale is None else scale


def is_folded(layer: Any) -> bool:
    """Returns whether the batch norm or gate `layer` is folded into the preceding kernel at present."""
    return id(layer) in _block.folded


def skips_folded(layer: Any, training: Any) -> bool:
    """Returns whether a batch norm or gate has nothing to do, because it is folded into the preceding kernel.

    Raises:
        RuntimeError: if it is folded and the network is called with `training=True`.
    """
    if not is_folded(layer):
        return False
    if training:
        raise RuntimeError(
            "A network inside `folded_kernels` must be called with training=False, because batch norm is part of the "
            f"kernels there. Received: training={training}"
        )
    return True


@contextlib.contextmanager
def override_kernel(layer: Any, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> Iterator[None]:
    """Makes `layer` use another kernel and bias, float32, inside the block."""
    dtype = layer.compute_dtype
    cached = CachedKernel(tf.cast(kernel, dtype), None if bias is None else tf.cast(bias, dtype))
    with _installed(cached=_block.cached | {id(layer): cached}, engines={}):
        yield


@contextlib.contextmanager
def cached_kernels(network: keras.Model) -> Iterator[None]:
    """Computes every effective kernel of `network` once, for all forward passes inside the block.

    Gradients flow through the cached kernels to the variables if a `tf.GradientTape` records when the block is
    entered. A variable changed inside the block takes effect after the block. An enclosing `folded_kernels` is
    suspended.
    """
    layers = kernel_layers(network)
    kernels = {id(layer): layer.compute_effective_kernel() for layer in layers}
    cached = {id(layer): _compute_form(layer, kernels[id(layer)]) for layer in layers}
    folded = _block.folded - {id(layer) for layer in all_layers(network)}  # these kernels contain no batch norm scale
    with _installed(kernels=_block.kernels | kernels, cached=_block.cached | cached, folded=folded, engines={}):
        yield


@contextlib.contextmanager
def moved_kernels(offsets: Iterable[tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Adds an offset to the effective kernel of each layer, for all forward passes inside the block.

    The variables stay as they are. Gradients flow to them, and to the offsets, if a `tf.GradientTape` records.

    Args:
        offsets: Kernel layers, each with a float32 tensor of the shape of its kernel.
    """
    with replaced_kernels([(layer, effective_kernel(layer) + offset) for layer, offset in offsets]):
        yield


@contextlib.contextmanager
def replaced_kernels(kernels: Sequence[tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Gives each layer another effective kernel, float32, for all forward passes inside the block."""
    own = {id(layer): kernel for layer, kernel in kernels}
    cached = {id(layer): _compute_form(layer, kernel) for layer, kernel in kernels}
    with _installed(kernels=_block.kernels | own, cached=_block.cached | cached, engines={}):
        yield


@contextlib.contextmanager
def folded_kernels(network: keras.Model, allow_sparse: bool = True) -> Iterator[None]:
    """Prepares every kernel of `network` for forward passes in inference mode inside the block.

    A batch norm or gate is folded into the preceding kernel if that kernel's layer has no activation and feeds nothing
    else. Gates that cannot be folded are computed once. On CPUs, the engine computes the networks whose layers it
    knows; without it, convolutions that expect few connections become sparse products. Inside the block the network
    must be called with `training=False`, and gradients reach the inputs alone.

    Args:
        network: A network of the toolkit's layers; other layers are left alone.
        allow_sparse: Whether sparse products and the engine are allowed; XLA cannot compile them.
    """
    engine = network_engine(network) if allow_sparse else None
    engines = dict(_block.engines)
    if engine is not None:
        engines[id(network)] = engine.prepared(effective_kernel)
    allow_sparse = allow_sparse and not tf.config.list_logical_devices("GPU")
    followers = {id(layer): found for layer, found in foldable_followers(network)}
    cached: dict[int, CachedKernel] = {}
    folded: set[int] = set()
    for layer in kernel_layers(network):
        sparse = allow_sparse and _sparse_is_faster(layer)
        if not followers[id(layer)]:
            if sparse:
                cached[id(layer)] = CachedKernel(sparse_kernel(effective_kernel(layer)), _compute_bias(layer))
            continue
        scale, shift = _composed(followers[id(layer)])
        if layer.bias is not None:
            shift += layer.bias * scale
        kernel, dtype = effective_kernel(layer) * scale, layer.compute_dtype
        cached[id(layer)] = CachedKernel(
            sparse_kernel(kernel) if sparse else tf.cast(kernel, dtype),
            tf.cast(shift, dtype),
        )
        folded.update(id(follower) for follower in followers[id(layer)])
    gates = {
        id(layer): layer.inference_scale()
        for layer in all_layers(network)
        if isinstance(layer, IsGate) and id(layer) not in folded
    }
    installed = {"cached": _block.cached | cached, "scales": _block.scales | gates, "folded": _block.folded | folded}
    with _installed(**installed, engines=engines):
        yield


@contextlib.contextmanager
def unfolded_kernels(network: keras.Model) -> Iterator[None]:
    """Suspends an enclosing `folded_kernels` inside the block; kernels cached around it stay cached."""
    cached = {
        id(layer): _compute_form(layer, _block.kernels[id(layer)])
        for layer in kernel_layers(network)
        if id(layer) in _block.kernels
    }
    others = {id(layer) for layer in kernel_layers(network)}
    kept = {key: value for key, value in _block.cached.items() if key not in others}
    folded = _block.folded - {id(layer) for layer in all_layers(network)}
    with _installed(cached=kept | cached, folded=folded, engines={}):
        yield


@contextlib.contextmanager
def cached_for_inference(model: Any) -> Iterator[None]:
    """Prepares a Keras model for many forward passes in inference mode inside the block; ignores other callables."""
    if isinstance(model, keras.Model):
        with cached_kernels(model), folded_kernels(model):
            yield
    else:
        yield


def foldable_followers(network: keras.Model) -> list[tuple[Any, list[Any]]]:
    """Returns each kernel layer of `network` and the batch norms and gates that can be folded into it, in order.

    The kernel layer feeds only the first of them, this one only the second, and so on.
    """
    after = {id(layer): follower for layer, follower in chains(network)}
    found: list[tuple[Any, list[Any]]] = []
    for layer in kernel_layers(network):
        follower = after.get(id(layer)) if layer.activation is keras.activations.linear else None
        followers: list[Any] = []
        while follower is not None and getattr(follower, "folds_into_last_axis", False):
            followers.append(follower)
            follower = after.get(id(follower))
        found.append((layer, followers))
    return found


def all_layers(network: keras.Model) -> Iterator[Any]:
    """Yields the layers of `network`; a nested model is replaced by its layers."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


def _composed(followers: list[Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the scale and shift of several layers applied one after the other."""
    scale, shift = followers[0].inference_scale_and_shift()
    for follower in followers[1:]:
        more, then = follower.inference_scale_and_shift()
        scale, shift = scale * more, shift * more + then
    return scale, shift


def _sparse_is_faster(layer: Any) -> bool:
    """Returns whether `layer` is a convolution that a sparse product computes faster."""
    return (
        getattr(layer, "padding", None) == "same"
        and layer.strides == (1, 1)
        and all(side % 2 for side in layer.kernel_size)
        and layer.compute_dtype == "float32"
        and is_faster((*layer.kernel_size, layer.input_spec.axes[-1], layer.filters), layer.expected_connectivity)
    )


def _compute_form(layer: Any, kernel: tf.Tensor) -> CachedKernel:
    return CachedKernel(tf.cast(kernel, layer.compute_dtype), _compute_bias(layer))


def _compute_bias(layer: Any) -> tf.Tensor | None:
    return None if layer.bias is None else tf.cast(layer.bias, layer.compute_dtype)


@contextlib.contextmanager
def _installed(**values: Any) -> Iterator[None]:
    before = {name: getattr(_block, name) for name in values}
    for name, value in values.items():
        setattr(_block, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_block, name, value)
