"""The optimizer's slots of a variable, such as momentum and second moments."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def slots(optimizer: keras.optimizers.Optimizer, variable: Any) -> list[Any]:
    """Returns the slots of `variable` that have its shape, such as its velocity.

    They are found by identity, because names are ambiguous: two nested models may both have a layer `conv`, and
    `kernel` is a prefix of `kernel_scale`. An optimizer keeps lists in the order of the variables that it was built
    for: one list of these variables and one for each kind of slot.

    Args:
        optimizer: A built Keras optimizer, possibly a `keras.optimizers.LossScaleOptimizer`.
        variable: One of the trainable variables it was built for; others have no slots.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    own = {id(each) for each in optimizer.variables}
    lists = [each for each in vars(optimizer).values() if isinstance(each, list)]
    places = [(len(each), place) for each in lists for place, found in enumerate(each) if found is variable]
    if not places:
        return []
    number, place = places[0]
    # The list of the optimizer's own variables may have the same length; it is recognized by its iteration counter.
    kinds = [each for each in lists if len(each) == number and not any(found is optimizer.iterations for found in each)]
    found = [each[place] for each in kinds if id(each[place]) in own]
    return [slot for slot in found if tuple(slot.shape) == tuple(variable.shape)]


def check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that the optimizer does not change weights unseen by a sparsifier.

    Raises:
        ValueError: if it averages weights or accumulates gradients.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer.use_ema:
        raise ValueError(
            "A sparsifier needs an optimizer with use_ema=False, because that average revives pruned weights; pass "
            f"RobustModel(..., average=EMA()) for one that does not. Received: {type(optimizer).__name__}(use_ema=True)"
        )
    if optimizer.gradient_accumulation_steps:
        raise ValueError(
            "A sparsifier needs an optimizer without gradient accumulation, because it acts after every step. "
            f"Received: {type(optimizer).__name__}(gradient_accumulation_steps={optimizer.gradient_accumulation_steps})"
        )


def apply_unless(
    rests: tf.Tensor | None, optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], weights: Sequence[Any]
) -> None:
    """Lets the optimizer update the weights, or only count the step if `rests` holds.

    Args:
        rests: Scalar boolean; `None` if the optimizer never rests.
        optimizer: A built optimizer.
        gradients: Gradients of `weights`.
        weights: The trainable variables.
    """

    def apply() -> tf.Tensor:
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return tf.convert_to_tensor(optimizer.iterations)

    def count() -> tf.Tensor:
        optimizer.iterations.assign_add(1)
        return tf.convert_to_tensor(optimizer.iterations)

    if rests is None:
        apply()
    elif not tf.distribute.has_strategy():
        tf.cond(rests, count, apply)
    else:  # gradients of replicas cannot be summed in a condition: update, then restore
        held = [*weights, *(slot for weight in weights for slot in slots(optimizer, weight))]
        before = tf.cond(
            rests,
            lambda: [tf.identity(each) for each in held],
            lambda: [tf.zeros((0,), each.dtype) for each in held],
        )
        apply()
        after = tf.cond(
            rests,
            lambda: [tf.reshape(copy, each.shape) for copy, each in zip(before, held, strict=True)],
            lambda: [tf.convert_to_tensor(each) for each in held],
        )
        assign_everywhere(list(zip(held, after, strict=True)))


def assign_everywhere(updates: Sequence[tuple[Any, tf.Tensor]]) -> list[tf.Operation]:
    """Assigns each (variable, value) pair, inside a replica context too.

    Returns the assigning operations, for `tf.control_dependencies`; none in eager execution or on several replicas.

    Every replica must have computed the same value. Optimizer slots have no aggregation, so TensorFlow refuses a plain
    assignment in a replica context or lets the replicas drift apart; `merge_call` writes the copy of each replica.
    """
    variables = [v.value if isinstance(v, keras.Variable) else v for v, _ in updates]
    values = [value for _, value in updates]

    def assign(strategy, values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, lambda v, new: v.assign(new), args=(value,), group=False)

    context = tf.distribute.get_replica_context()
    if context is None or not tf.distribute.has_strategy():
        pairs = zip(variables, values, strict=True)
        operations = [variable.assign(value, read_value=False) for variable, value in pairs]
        return [] if tf.executing_eagerly() else operations
    context.merge_call(assign, args=(values,))
    return []
