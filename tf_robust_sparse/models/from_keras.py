"""Converts plain Keras layers to layers of this package: the inverse of `saving.strip`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse import layers
from tf_robust_sparse.layers.cloning import cloned, copy_of, set_weights
from tf_robust_sparse.layers.learned_rates import first_fractions
from tf_robust_sparse.layers.subnet import default_scores
from tf_robust_sparse.layers.topology import input_ranks
from tf_robust_sparse.models.initial_connectivity import at_the_ends, in_the_middle

_FORMS = ("plain", "masked", "rewiring", "subnet", "learned_rate")  # the parametrizations that can hold any kernel
_SAME_CONFIG = {
    kind.plain_class: kind for kind in (layers.BatchNormalization, layers.MaxPooling2D, layers.Normalization)
}
_ADDED = ("kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint")


class Converted(NamedTuple):
    """What `from_keras` returns.

    Attributes:
        model: The model in layers of this package, with the weights and layer names of the original.
        converted: Names of the converted layers, such as `"block/conv"` in a nested model.
        skipped: Names of the dense and convolutional layers that were not converted, each with the reason.
    """

    model: keras.Model
    converted: list[str]
    skipped: dict[str, str]


def from_keras(
    model: keras.Model, kernel: str = "plain", connectivity: float | None = None, seed: int = 0
) -> Converted:
    """Clones a functional or sequential Keras model with kernels of this package, and copies its weights.

    Methods that need a special parametrization then work on the model: `kernel="rewiring"` for `ConnectivitySampling`,
    `"subnet"` for the scores of HYDRA, `"learned_rate"` for `LearnedRates`. With any kernel, attack steps fold batch
    norm into kernels and use the fast paths of the networks of `trs.models`. `saving.strip` converts back to an
    ordinary Keras model.

    ```python
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=10,
                                           classifier_activation=None)
    network = trs.models.from_keras(model, kernel="rewiring", connectivity=0.1).model
    sparsifier = trs.sparsity.ConnectivitySampling(0.1, init_policy="exact")
    trainer = trs.RobustModel(network, trs.objectives.AT(attack), sparsifier)
    trainer.compile("sgd")
    trainer.fit(train, epochs=20)
    trs.saving.strip(network).save("sparse.keras")
    ```

    `Dense` layers on vectors and `Conv2D` layers without groups and dilation, channels last, are converted. Batch norm,
    max pooling and normalization are replaced by their counterparts. All other layers, including depthwise
    convolutions, attention and custom layers, are copied unchanged.

    Args:
        model: A built functional or sequential model; it does not change.
        kernel: `"plain"`, `"masked"`, `"rewiring"`, `"subnet"` or `"learned_rate"`.
        connectivity: Fraction of the converted kernel entries, in (0, 1]. `"rewiring"` needs it: random positions, more
            of them in the first and last layer, keep their weights; the other entries keep only their sign.
            `"subnet"` keeps that fraction of each kernel, and for `"learned_rate"` it is the budget; other
            parametrizations ignore it.
        seed: Integer, the seed of positions and scores.

    Returns:
        The converted model and what was converted.

    Raises:
        ValueError: if the model is not functional or sequential, no layer can be converted, a layer cannot be copied
            from its configuration, or an argument is out of its range.

    Reference: [Bellec et al., 2018](https://arxiv.org/abs/1711.05136), section 2, for `"rewiring"`.
    """
    if kernel not in _FORMS:
        raise ValueError(f"`kernel` must be one of {', '.join(_FORMS)}. Received: kernel={kernel!r}")
    if kernel == "rewiring" and connectivity is None:
        raise ValueError(
            'kernel="rewiring" draws connections; pass their fraction, connectivity=0.1. Received: connectivity=None'
        )
    if connectivity is not None and not 0 < connectivity <= 1:
        raise ValueError(f"`connectivity` must be in (0, 1]. Received: connectivity={connectivity!r}")
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built keras.Model; call it on images first. Received: {model!r}")
    kinds = dict(zip((keras.layers.Dense, keras.layers.Conv2D), layers.KERNELS[kernel], strict=True))
    named: dict[int, tuple[str, Any]] = {}  # a shared layer counts once, by its first name
    for name, layer in _named_layers(model):
        if type(layer) in kinds:
            named.setdefault(id(layer), (name, layer))
    ranks = input_ranks(model)
    reasons_by_name = [(name, layer, _why_not(layer, ranks.get(id(layer), set()))) for name, layer in named.values()]
    skipped = {name: reason for name, _, reason in reasons_by_name if reason}
    converted_names = [name for name, _, reason in reasons_by_name if not reason]
    chosen = [layer for _, layer, reason in reasons_by_name if not reason]
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:4])
        raise ValueError(
            f"{model.name} has no Dense or Conv2D layer that can be converted. Received: {reasons or 'none at all'}"
        )
    settings = {
        id(layer): _form(kernel, layer, layer in (chosen[0], chosen[-1]), connectivity, seed + number)
        for number, layer in enumerate(chosen)
    }

    def convert(layer: Any) -> Any:
        if id(layer) in settings:
            return _layer(kinds[type(layer)], layer, settings[id(layer)])
        same = _SAME_CONFIG.get(type(layer))
        return same.from_config(layer.get_config()) if same else copy_of(layer)

    converted = cloned(model, convert, "converted")
    _copy(model, converted, {id(layer) for layer in chosen})
    return Converted(converted, converted_names, skipped)


def _named_layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the layers with their names; a nested model is replaced by its layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _named_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def _why_not(layer: Any, ranks: set[int]) -> str | None:
    added = [name for name in _ADDED if getattr(layer, name, None) is not None]
    if added:
        return f"it has a {added[0]}"
    # An activation without weights counts as built from the start; one with weights makes them in its first call.
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer) and (activation.weights or not activation.built):
        return f"its activation {type(activation).__name__} has weights"
    if layer.quantization_mode is not None or layer.lora_enabled:
        return "it is quantized or has LoRA weights"
    if isinstance(layer, keras.layers.Dense):
        return None if ranks | {len(layer.get_build_config()["input_shape"])} == {2} else "its inputs are not vectors"
    if layer.groups != 1 or set(layer.dilation_rate) != {1}:
        return "it has groups or dilation"
    if layer.data_format != "channels_last" or layer.padding not in ("valid", "same"):
        return "its channels are first or its padding is another one"
    return None


def _form(kernel: str, layer: Any, at_an_end: bool, connectivity: float | None, seed: int) -> dict[str, Any]:
    """Returns the arguments that the parametrization adds."""
    if kernel in ("subnet", "learned_rate"):
        fraction = 1.0 if connectivity is None else connectivity
        form = {"keep_fraction": fraction} if kernel == "subnet" else first_fractions(fraction)
        return {**form, "scores_initializer": default_scores(seed)}
    if kernel != "rewiring" or connectivity is None:
        return {}
    fan_in = int(np.prod(layer.kernel.shape[:-1]))
    initial = at_the_ends(connectivity) if at_an_end else in_the_middle(connectivity, fan_in)
    return {"initial_connectivity": initial, "seed": seed}


def _layer(kind: Any, layer: Any, form: dict[str, Any]) -> Any:
    names = ["name", "trainable", "dtype", "activation", "use_bias", "kernel_initializer"]
    names += ["units"] if isinstance(layer, keras.layers.Dense) else ["filters", "kernel_size", "strides", "padding"]
    config = layer.get_config()
    return kind.from_config({**{name: config[name] for name in names}, **form})


def _copy(model: Any, converted: Any, chosen: set[int]) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        copy = converted.get_layer(layer.name)
        if isinstance(layer, keras.Model):
            _copy(layer, copy, chosen)
        elif id(layer) in chosen:
            copy.hold_kernel(np.asarray(layer.kernel))
            if layer.use_bias:
                copy.bias.assign(layer.bias)
        elif copy.weights:
            set_weights(copy, layer.get_weights())
