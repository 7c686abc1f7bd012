"""Gradual schedules of tensorflow-model-optimization, spoken of as connectivity."""

import importlib
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_robust_sparse.sparsity.allocation import check_connectivity

# A schedule maps the step, an int64 scalar, to (whether to prune now, the connectivity to prune to).
Schedule = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def polynomial(
    final_connectivity: float,
    end_step: int,
    initial_connectivity: float = 1.0,
    begin_step: int = 0,
    frequency: int = 100,
    power: float = 3.0,
) -> Schedule:
    """Prunes every `frequency` steps and at the last one, quickly at first and gently at the end.

    Args:
        final_connectivity: Connectivity from `end_step` on, in (0, 1].
        end_step: Step at which the final connectivity is reached.
        initial_connectivity: Connectivity at `begin_step`, in (0, 1].
        begin_step: First step that prunes.
        frequency: Steps between two prunings.
        power: Exponent of the decay.

    Raises:
        ValueError: if a connectivity is outside (0, 1] or the steps do not follow each other.

    Reference: [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), section 3, through
        `tfmot.sparsity.keras.PolynomialDecay`.
    """
    if not 0 <= begin_step < end_step:
        raise ValueError(
            "`begin_step` must be at least 0 and before `end_step`. "
            f"Received: begin_step={begin_step}, end_step={end_step}"
        )
    decay = _model_optimization().PolynomialDecay(
        initial_sparsity=1 - check_connectivity(initial_connectivity),
        final_sparsity=1 - check_connectivity(final_connectivity),
        begin_step=begin_step,
        end_step=end_step,
        power=power,
        frequency=frequency,
    )
    return _as_connectivity(decay, end_step)


def constant(connectivity: float, begin_step: int = 0, end_step: int = -1, frequency: int = 100) -> Schedule:
    """Prunes to one connectivity every `frequency` steps from `begin_step` to `end_step` (-1: without end).

    Raises:
        ValueError: if the connectivity is outside (0, 1].
    """
    return _as_connectivity(
        _model_optimization().ConstantSparsity(
            1 - check_connectivity(connectivity), begin_step=begin_step, end_step=end_step, frequency=frequency
        )
    )


def _as_connectivity(schedule: Any, last_step: int = -1) -> Schedule:
    def at(step):
        step = tf.cast(step, tf.int64)
        should_prune, sparsity = schedule(step)
        # By its frequency alone it may miss the step on which it reaches its end.
        return should_prune | (step == last_step), 1 - tf.cast(sparsity, tf.float64)

    return at


def _model_optimization() -> Any:
    """Imports the schedules without the side effect on Keras.

    The package sets `TF_USE_LEGACY_KERAS` for the process and its children. `tf.keras` is resolved first, so that it
    stays Keras 3, and the variable is put back.
    """
    name = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(name)
    _ = tf.keras.__version__
    try:
        return importlib.import_module("tensorflow_model_optimization").sparsity.keras
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
