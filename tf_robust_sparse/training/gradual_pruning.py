"""Callbacks for binary sub-networks: how much is kept in each epoch, and when weights of examples apply."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tf_robust_sparse.sparsity import set_keep_fractions
from tf_robust_sparse.training.callbacks import Checkpoints
from tf_robust_sparse.training.mask_changes import save_masks


class GradualPruning(keras.callbacks.Callback):
    """Keeps less in each stage: sets the fractions of all subnet kernels at the beginning of an epoch.

    A change retraces the training step, once per stage, and forgets the best epochs so far, because they kept more. The
    fractions depend only on the epoch, so a resumed run continues like an uninterrupted one.

    Args:
        rates: The fraction of all entries that is kept, for each epoch; see `gradual_rates`.
        fractions: Function from that fraction to the fractions of the layers, by name, such as
            `lambda rate: keep_fractions(network, rate, "adaptive", exponent=0.1)`.
        checkpoints: The callback whose best epochs are forgotten, or `None`.
        masks: Directory for the masks at the beginning of each stage, `epoch_<n>.npz`, or `None`; see `save_masks`.
    """

    def __init__(
        self,
        rates: Sequence[float],
        fractions: Callable[[float], Mapping[str, float]],
        checkpoints: Checkpoints | None = None,
        masks: Path | None = None,
    ) -> None:
        super().__init__()
        self._rates = list(rates)
        self._fractions = fractions
        self.checkpoints = checkpoints
        self._masks = masks
        self._set: float | None = None

    def on_train_begin(self, logs=None):
        """Forgets the fraction that was set for another model."""
        self._set = None

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the fractions of the epoch."""
        rate = self._rates[min(epoch, len(self._rates) - 1)]
        if rate == self._set:
            return
        set_keep_fractions(self.model.network, self._fractions(rate))
        self.model.make_train_function(force=True)
        self.model.test_function = None  # traced with the old fractions
        begins = epoch > 0 and self._rates[min(epoch - 1, len(self._rates) - 1)] != rate
        if begins and self.checkpoints is not None:
            self.checkpoints.state["best"] = {}
        if begins and self._masks is not None:
            save_masks(self.model.network, self._masks / f"epoch_{epoch + 1}.npz")
        self._set = rate


class Reweighting(keras.callbacks.Callback):
    """Switches on the weights of a `Reweighted` objective after some epochs.

    Args:
        objective: The objective.
        warmup: Number of epochs without weights.
    """

    def __init__(self, objective: Any, warmup: int = 0) -> None:
        super().__init__()
        self._objective = objective
        self._warmup = warmup

    def on_epoch_begin(self, epoch, logs=None):
        """Switches the weights on or off."""
        self._objective.active.assign(epoch >= self._warmup)
