"""What can be pruned: the kernels of any Keras layer, and the layers of this package's parametrizations."""

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.masked import MaskedKernel
from tf_robust_sparse.layers.plain import PlainKernel
from tf_robust_sparse.sparsity.integers import check_integer

Filters = str | Sequence[str] | Callable[[str], bool]

KERNELS = ("kernel", "recurrent_kernel", "pointwise_kernel", "depthwise_kernel", "embeddings")
NEVER = ("bias", "gamma", "beta")
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.SpectralNormalization,
)

_log = logging.getLogger(__name__)


class Prunable(NamedTuple):
    """A kernel whose entries may be removed.

    Attributes:
        name: Its name in reports and messages: the path of the variable, or the name of a layer of this package.
        weight: The variable whose entries are ranked, `(..., outputs)`, floating: the kernel, or the numbers by which a
            parametrization selects entries (`scores`, `theta`).
        mask: Boolean variable of the same shape, `True` where entries exist; `None` if there is none yet.
        layer: The layer that multiplies by it.
    """

    name: str
    weight: Any
    mask: Any
    layer: Any

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.weight.shape)

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides for the Erdős-Rényi kernel rule: the shape, or for an attention kernel those of its matrix."""
        return kernel_sides(self.layer, tuple(self.weight.shape))

    def gradient_source(self) -> Any:
        """Returns the tensor whose gradient also reaches masked-out entries.

        Call it inside `layers.cached_kernels`, while a `tf.GradientTape` records.
        """
        return self.layer.effective_kernel if is_masked(self.layer) else self.weight


class Skipped(NamedTuple):
    """A variable that is not pruned, and the reason."""

    name: str
    reason: str


def find_kernels(
    model: keras.Model,
    filters: Filters | None = None,
    min_size: int = 256,
    depthwise: bool = False,
    embeddings: bool = False,
) -> tuple[list[Prunable], list[Skipped]]:
    """Finds the kernels of any built Keras model that may be pruned.

    Variables are examined, not layers, so attention, recurrent cells, wrappers, shared and nested layers and custom
    layers need no special cases. A variable that is used in several places counts once.

    Args:
        model: A built model.
        filters: Which variables to prune: a regular expression or a list of them, searched for anywhere in a path such
            as `"block/query/kernel"`, or a function of the path. `None` means variables whose names are those of
            kernels.
        min_size: Tensors with fewer entries stay dense.
        depthwise: Whether kernels of depthwise convolutions are pruned, which hold few but important entries.
        embeddings: Whether embedding tables are pruned.

    Returns:
        The kernels in the order of the model, without masks, and the other variables with the reasons.

    Raises:
        ValueError: if the model is not built, has quantized or LoRA layers, or a filter matches nothing.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
    if not model.built:
        raise ValueError(
            "`model` must be built before it is made sparse; call it once, or start it with keras.Input(shape). "
            f"Received: {type(model).__name__} {model.name}, not built"
        )
    for layer in sublayers(model):
        # Quantized and LoRA layers do not multiply by their kernel variable.
        for what in ("quantization_mode", "lora_enabled"):
            if getattr(layer, what, None):
                raise ValueError(
                    "Quantized and LoRA layers cannot be pruned: make the model sparse first, and quantize it after "
                    f"training. Received: {type(layer).__name__} {layer.name} with {what}={getattr(layer, what)!r}"
                )
    check_integer("min_size", min_size, 0, "a number of entries")
    accepts = _accepts(filters)
    trainable = {id(variable) for variable in model.trainable_variables}
    found, skipped, matched = [], [], False
    for name, variable, layer in _named_variables(model):
        wanted = filters is None or accepts(name)
        matched = matched or (filters is not None and wanted)
        reason = _reason(variable, layer, id(variable) in trainable, filters, wanted, min_size, depthwise, embeddings)
        if reason is None:
            found.append(Prunable(name, variable, None, layer))
        elif reason:
            skipped.append(Skipped(name, reason))
    if filters is not None and not matched:
        names = [name for name, _, _ in _named_variables(model)]
        raise ValueError(
            f"`filters` matches no variable of {model.name}, whose variables are {some(names)}. "
            f"Received: filters={filters!r}"
        )
    if not found:
        reasons = some([f"{each.name}: {each.reason}" for each in skipped]) or "no kernel at all"
        raise ValueError(f"{model.name} has no variable that can be pruned. Received: {reasons}")
    return found, skipped


def kernel_variables(model: keras.Model) -> list[tuple[str, Any]]:
    """Returns the path and variable of every kernel of a model, including those that `find_kernels` leaves dense."""
    return [(name, variable) for name, variable, layer in _named_variables(model) if _is_kernel(variable, layer)]


def kernel_owners(model: keras.Model) -> list[Any]:
    """Returns the innermost layers of a model that have a kernel."""
    owners = [layer for _, variable, layer in _named_variables(model) if _is_kernel(variable, layer)]
    return [*owners, *layers.kernel_layers(model)]


def kernel_sides(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sides of a kernel for the Erdős-Rényi kernel rule.

    The kernel of an `EinsumDense`, as in attention, counts as a matrix from the axes that are summed over to the rest.
    """
    if not isinstance(layer, keras.layers.EinsumDense) or len(shape) < 3:
        return shape
    inputs, kernel, outputs = einsum_letters(layer.equation)
    inward = math.prod(side for axis, side in zip(kernel, shape, strict=True) if axis in inputs and axis not in outputs)
    return (inward, math.prod(shape) // inward)


def einsum_letters(equation: str) -> list[str]:
    """Returns the letters of the inputs, the kernel and the outputs in the equation of an `EinsumDense`."""
    return re.split(r",|->", equation.replace(" ", ""))


def sublayers(model: Any) -> Iterator[Any]:
    """Yields the model and every layer inside it, outer ones first, each once."""
    yield from model._flatten_layers(include_self=True, recursive=True)  # as in Keras' `quantize`


def _named_variables(model: keras.Model) -> list[tuple[str, Any, Any]]:
    """Returns name, variable and innermost layer of each weight, in the order of the model."""
    owner: dict[int, Any] = {}
    for layer in sublayers(model):
        for variable in layer.weights:
            owner[id(variable)] = layer  # inner layers come later and win
    seen: dict[str, int] = {}
    named = []
    for variable in {id(each): each for each in model.variables if id(each) in owner}.values():
        count = seen[variable.path] = seen.get(variable.path, 0) + 1
        named.append((variable.path if count == 1 else f"{variable.path}#{count}", variable, owner[id(variable)]))
    return named


def _reason(
    variable: Any,
    layer: Any,
    trainable: bool,
    filters: Filters | None,
    wanted: bool,
    min_size: int,
    depthwise: bool,
    embeddings: bool,
) -> str | None:
    """Returns `None` if a variable is pruned, else the reason, or `""` for variables that nobody would prune."""
    shape, name = tuple(variable.shape), variable.name
    if len(shape) < 2 or name in NEVER or isinstance(layer, NORMS) or not _is_floating(variable):
        return ""
    called = _is_kernel(variable, layer)
    if not trainable:
        return "frozen" if called else ""
    if isinstance(layer, layers.KernelLayer) and not isinstance(layer, (MaskedKernel, PlainKernel)):
        return "its layer itself decides which entries exist"
    if not called and filters is None:
        return f"its name is not that of a kernel; name it in filters={re.escape(name)!r} to prune it"
    if not wanted:
        return "not among the filters"
    if name == "embeddings" and not embeddings:
        return "an embedding; embeddings=True prunes it"
    if (isinstance(layer, DEPTHWISE) or name == "depthwise_kernel") and not depthwise:
        return "a depthwise kernel; depthwise=True prunes it"
    if math.prod(shape) < min_size:
        return f"{math.prod(shape)} entries, fewer than min_size={min_size}"
    return None


def _is_kernel(variable: Any, layer: Any) -> bool:
    return variable.name in KERNELS and len(variable.shape) > 1 and not isinstance(layer, NORMS)


def _is_floating(variable: Any) -> bool:
    return tf.as_dtype(keras.backend.standardize_dtype(variable.dtype)).is_floating


def _accepts(filters: Filters | None) -> Callable[[str], bool]:
    if filters is None or callable(filters):
        return filters or (lambda name: True)
    patterns = [filters] if isinstance(filters, str) else list(filters)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise ValueError(
            "`filters` must be a regular expression, a list of them, or a function of the path of a variable "
            f"({error}). Received: filters={filters!r}"
        ) from None
    return lambda name: any(pattern.search(name) for pattern in compiled)


def some(words: Sequence[str], number: int = 8, between: str = ", ") -> str:
    """Returns the first words of a list and the number of the others, for messages."""
    return between.join(words[:number]) + (f" and {len(words) - number} more" if len(words) > number else "")


def is_masked(layer: Any) -> bool:
    """Returns whether the kernel of a layer has a mask in the layer."""
    return isinstance(layer, MaskedKernel)


def find_parametrized(
    network: keras.Model, fits: Callable[[Any], bool], subject: str, form: str, otherwise: str = ""
) -> list[Prunable]:
    """Finds the kernels of one parametrization of this package that are not frozen, in forward order.

    Args:
        network: A network of the toolkit's layers.
        fits: Returns whether a layer has the required parametrization.
        subject: Subject and verb of the message, such as `"Scores need"`.
        form: The name that a builder takes as `kernel`, for the message.
        otherwise: An alternative, for the message.

    Raises:
        ValueError: if there is none, or there are prunable kernels of another parametrization.
    """
    kernels = layers.kernel_layers(network)
    fitting = [layer for layer in kernels if fits(layer)]
    others = [layer for layer in kernels if layer.prunable and not layer.frozen and layer not in fitting]
    found = [layer for layer in fitting if not layer.frozen]
    if fitting and not found and not others:
        raise ValueError(
            f"{subject} a layer that is not frozen; set layer.trainable = True where connections may change. Received "
            f"frozen layers: {', '.join(layer.name for layer in fitting)}"
        )
    if not found or others:
        raise ValueError(
            f'{subject} a network built with kernel="{form}"{otherwise}. Received layers: '
            f"{sorted({type(layer).__name__ for layer in (others or kernels or network.layers)})}"
        )
    return [Prunable(each.name, each.ranked, each.kernel_mask if is_masked(each) else None, each) for each in found]


def report_frozen(network: keras.Model, fits: Callable[[Any], bool] = lambda layer: False) -> list[str]:
    """Returns the names of frozen layers that could be pruned or that fit, and warns about them."""
    names = [layer.name for layer in layers.kernel_layers(network) if layer.frozen and (layer.prunable or fits(layer))]
    if names:
        _log.warning("Frozen layers keep their connections: %s", ", ".join(names))
    return names
