"""Forward passes and input gradients of whole networks on the engine, in place of TensorFlow's operations.

A block of `folded_kernels` reads the weights of its network once into the lists that the engine multiplies; every
pass inside runs on these. Images change their layout at both ends only. The calls leave TensorFlow's graph, so that XLA
cannot compile them; other devices than CPUs have faster ways.
"""

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.engine import library
from tf_robust_sparse.engine.engine import Engine, Placed
from tf_robust_sparse.engine.nodes import Node
from tf_robust_sparse.engine.plan import make_plan
from tf_robust_sparse.layers.engine_costs import costs
from tf_robust_sparse.layers.engine_nodes import engine_nodes, layer_name
from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.protocols import IsAffine
from tf_robust_sparse.layers.topology import layer_graph

_LANES = 16
_BATCH = 32  # images of a batch of unknown size, for the estimate
_MOST_KEPT = 2**31  # bytes of activations that wait for their gradient

_engines: weakref.WeakKeyDictionary[keras.Model, "NetworkEngine | None"] = weakref.WeakKeyDictionary()


def network_engine(network: Any) -> "NetworkEngine | None":
    """Returns what computes `network` on the engine, `None` if its kernels, its layers or its device forbid it."""
    if not library.available() or not type(network).__module__.startswith("keras."):
        return None  # a class of the user's own may compute more than its layers
    if tf.config.list_logical_devices("GPU"):
        return None
    if network not in _engines:
        _engines[network] = _made(network)
    return _engines[network]


def _made(network: keras.Model) -> "NetworkEngine | None":
    try:
        nodes = network_nodes(network)
    except ValueError:  # the engine does not know a layer
        return None
    floats = all(layer.compute_dtype == "float32" for layer in network.layers)
    return NetworkEngine(network, nodes) if floats and len(network.output_shape) == 2 else None


def network_nodes(network: keras.Model) -> list[Node]:
    """Returns the operations of a functional or sequential network.

    Raises:
        ValueError: naming the layer that the engine does not know.
    """
    output = network.layers[-1].name if isinstance(network, keras.Sequential) else network.output_names[0]
    return engine_nodes(layer_graph(network), output)


class NetworkEngine:
    """One network on the engine.

    Args:
        network: A functional or sequential model of layers that the engine knows.
        nodes: Its operations.
    """

    def __init__(self, network: keras.Model, nodes: list[Node]) -> None:
        self._names = nodes_with_weights(nodes)
        self._layers = {name: weakref.ref(network.get_layer(layer_name(name))) for name in self._names}
        # Plain layers of Keras count as dense.
        expected = {name: getattr(layer(), "expected_connectivity", 1.0) for name, layer in self._layers.items()}
        self._costs = costs(nodes, expected)
        self._engine = Engine(make_plan(nodes, _LANES, gradient=True), threads())
        self._shape = self._engine.plan.shape
        self._classes = self._engine.plan.classes
        self._kept: dict[int, list[Placed]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._call = custom_gradient(self._passes)

    def prepared(self, effective_kernel: Callable[[Any], tf.Tensor]) -> Callable[[Any], tf.Tensor | None]:
        """Returns a function from images to logits, or to `None` where TensorFlow is faster.

        Args:
            effective_kernel: From a kernel layer to its float32 kernel.
        """
        words, graph = self.weights(effective_kernel), tf.compat.v1.get_default_graph()

        def logits(x: Any) -> tf.Tensor | None:
            is_in_loop = tf.compat.v1.get_default_graph() is not graph
            return self(x, words) if self.takes(x, is_in_loop) else None

        return logits

    def weights(self, effective_kernel: Callable[[Any], tf.Tensor]) -> tf.Tensor:
        """Returns the weights of the network as the engine takes them: `(words,)`, int32. See `prepared`."""
        pairs = [weights_of(self._layers[name](), name, effective_kernel) for name in self._names]
        given = [tensor for pair in pairs for tensor in pair if tensor is not None]
        there = [[tensor is not None for tensor in pair] for pair in pairs]

        def pack(*arrays: np.ndarray) -> np.ndarray:
            left = iter(arrays)
            found = [[next(left) if has else None for has in pair] for pair in there]
            return self._engine.pack(dict(zip(self._names, found, strict=True)))

        return tf.ensure_shape(tf.numpy_function(pack, given, tf.int32, stateful=False), (None,))

    def takes(self, x: Any, repeated: bool) -> bool:
        """Returns whether `x` is what the network was built for, and the engine faster. See `Costs.is_faster`."""
        if not tf.is_tensor(x) or x.dtype != tf.float32 or tuple(x.shape[1:]) not in (self._shape, self._shape[2:]):
            return False
        batch = _BATCH if x.shape[0] is None else x.shape[0]
        return self._costs.is_faster(batch, _LANES, self._engine.threads, repeated)

    def __call__(self, x: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
        """Returns the logits `(batch, classes)` of images, differentiable with respect to these alone."""
        return self._call(x, words)

    def _passes(self, x: tf.Tensor, words: tf.Tensor) -> Any:
        keeps = [tf.executing_eagerly()]  # in a graph the gradient is asked for before the first pass, or never

        def forward(x: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.int64]:
            return self._forward(x, words, keeps[0])

        logits, number = tf.numpy_function(forward, [x, words], (tf.float32, tf.int64), stateful=False)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
            keeps[0] = True
            given = [x, words, number, upstream]
            return tf.ensure_shape(tf.numpy_function(self._backward, given, tf.float32, stateful=False), x.shape), None

        return tf.ensure_shape(logits, (x.shape[0], self._classes)), gradient

    def _forward(self, x: np.ndarray, words: np.ndarray, keeps: bool) -> tuple[np.ndarray, np.int64]:
        if not keeps:
            return self._engine.logits(words, x), np.int64(-1)
        self._make_room(len(x))
        logits, spaces = self._engine.logits_and_spaces(words, x)
        with self._lock:
            number = next(self._numbers)
            self._kept[number] = spaces
        return logits, np.int64(number)

    def _backward(self, x: np.ndarray, words: np.ndarray, number: np.int64, upstream: np.ndarray) -> np.ndarray:
        with self._lock:
            spaces = self._kept.pop(int(number), None)
        if spaces is None:  # it had to make room, or a second gradient is asked for
            _, spaces = self._engine.logits_and_spaces(words, x)
        return self._engine.gradient(words, spaces, upstream).reshape(x.shape)

    def _make_room(self, batch: int) -> None:
        """Gives up the oldest activations that wait for a gradient."""
        new = -(-batch // _LANES) * self._engine.plan.space * 4
        with self._lock:
            while self._kept:
                kept = sum(len(spaces) for spaces in self._kept.values()) * self._engine.plan.space * 4
                if kept + new <= _MOST_KEPT and len(self._kept) < 2:
                    break
                self._engine.give_back(self._kept.pop(min(self._kept)))


def threads() -> int:
    """Returns the number of threads, TensorFlow's own for one operation."""
    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    named = os.environ.get("TF_NUM_INTRAOP_THREADS", "")  # which TensorFlow follows where nothing is chosen
    if chosen or (named.isdecimal() and int(named)):
        return chosen or int(named)
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone tells which cores this process may use
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def nodes_with_weights(nodes: Sequence[Node]) -> list[str]:
    """Returns the names of the operations that need weights, see `weights_of`."""
    return [node.name for node in nodes if node.kind in ("convolution", "affine")]


def weights_now(network: keras.Model, nodes: Sequence[Node]) -> dict[str, list[np.ndarray | None]]:
    """Returns the weights of every operation that has some, float32, see `weights_of`."""
    pairs = {name: weights_of(network.get_layer(layer_name(name)), name) for name in nodes_with_weights(nodes)}
    return {
        name: [None if each is None else keras.ops.convert_to_numpy(each).astype(np.float32) for each in pair]
        for name, pair in pairs.items()
    }


def weights_of(layer: Any, node: str, effective_kernel: Callable[[Any], tf.Tensor] | None = None) -> tuple[Any, Any]:
    """Returns kernel and bias of an operation of the engine, or its scale and shift: float32, or `None`.

    Args:
        layer: The layer of the toolkit or of Keras that it belongs to.
        node: Its name; a separable convolution is two operations.
        effective_kernel: What gives the kernel of a layer of the toolkit; `None` to compute it.
    """
    if isinstance(layer, KernelLayer):
        kernel = layer.compute_effective_kernel() if effective_kernel is None else effective_kernel(layer)
        return _as_images(kernel, layer), layer.bias
    if isinstance(layer, IsAffine):
        return layer.inference_scale_and_shift()
    if isinstance(layer, keras.layers.Rescaling):
        shape = (layer.output.shape[-1],)
        return tuple(tf.broadcast_to(tf.cast(each, tf.float32), shape) for each in (layer.scale, layer.offset))
    if isinstance(layer, keras.layers.Normalization):
        scale = 1 / tf.maximum(tf.sqrt(tf.reshape(layer.variance, (-1,))), keras.config.epsilon())
        return _spread(layer, scale, -tf.reshape(layer.mean, (-1,)) * scale)
    if isinstance(layer, keras.layers.BatchNormalization):
        scale = tf.math.rsqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        scale = scale * layer.gamma if layer.scale else scale
        shift = -layer.moving_mean * scale
        return scale, shift + layer.beta if layer.center else shift
    if isinstance(layer, keras.layers.SeparableConv2D):
        if node == layer.name:
            return tf.convert_to_tensor(layer.pointwise_kernel), layer.bias
        return _of_groups(tf.convert_to_tensor(layer.depthwise_kernel)), None
    return _as_images(tf.convert_to_tensor(layer.kernel), layer), layer.bias


def _spread(layer: Any, scale: tf.Tensor, shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    shape = (layer.output.shape[-1],)
    return tf.broadcast_to(scale, shape), tf.broadcast_to(shift, shape)


def _as_images(kernel: tf.Tensor, layer: Any) -> tf.Tensor:
    """The kernel of a convolution `(height, width, channels of a group, filters)`."""
    if kernel.shape.rank == 2:
        return kernel[tf.newaxis, tf.newaxis]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return _of_groups(kernel)
    return kernel


def _of_groups(kernel: tf.Tensor) -> tf.Tensor:
    """The kernel of a depthwise convolution, in which a group is a channel."""
    return tf.reshape(kernel, (*kernel.shape[:2], 1, -1))
