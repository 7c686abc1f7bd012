"""Flying Bird+: connections that move, and become fewer under robust overfitting or more under underfitting."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity
from tf_robust_sparse.sparsity.flying_bird import FlyingBird
from tf_robust_sparse.sparsity.integers import check_integer
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere


class FlyingBirdPlus(FlyingBird):
    """`FlyingBird` whose number of connections follows the signs of robust overfitting.

    The last `window` epochs before an update are examined, from epoch `start_epoch` on. If the gap between robust
    training and validation accuracy widened in at least the fraction `threshold` of the epochs, each kernel drops
    `prune_share` more than it grows. If the robust validation loss did not fall in as many epochs, `growth_share` more
    grows. Both may happen at once. Dense kernels stay dense.

    Train with a `RobustModel` that has a validation attack, with an objective that computes logits of attacked images,
    and pass validation data to `fit`.

    ```python
    report = trs.sparsify(model, connectivity=0.2, sparsifier=trs.sparsity.FlyingBirdPlus(end_step=78_200))
    ```

    Args:
        connectivity: Fraction of the entries that are connected at first, in (0, 1]; `None` leaves it to
            `trs.sparsify`.
        start_epoch: First epoch, counted from 0, whose updates may change the number of connections.
        window: Number of epochs that are examined, at least 2.
        threshold: Fraction of the epochs that must show a sign, in (0, 1].
        prune_share: What is dropped in addition, as a fraction of the moving connections, at least 0.
        growth_share: What grows in addition, as a fraction of the moving connections, at least 0.
        **kwargs: Arguments of `FlyingBird`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Chen et al., 2022](https://arxiv.org/abs/2202.09844), section 3, with the constants of its code.
    """

    watches_validation = True

    def __init__(
        self,
        connectivity: float | None = None,
        start_epoch: int = 100,
        window: int = 5,
        threshold: float = 0.5,
        prune_share: float = 0.4,
        growth_share: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(connectivity, **kwargs)
        for name, value, fits, expected in (
            ("threshold", threshold, 0 < threshold <= 1, "in (0, 1]"),
            ("prune_share", prune_share, prune_share >= 0, "at least 0"),
            ("growth_share", growth_share, growth_share >= 0, "at least 0"),
        ):
            if not fits:
                raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")
        self.start_epoch = check_integer("start_epoch", start_epoch, 0, "a number of epochs")
        self.window = check_integer("window", window, 2, "a number of epochs")
        self.threshold = float(threshold)
        self.prune_share, self.growth_share = float(prune_share), float(growth_share)
        self._history: Any = None
        self._signs: Any = None
        self._connections: Any = None

    def start(self) -> None:
        """Chooses the initial connections and creates the variables that record the epochs."""
        super().start()
        # For each epoch: the gap between robust accuracies, and the robust validation loss.
        unknown = keras.initializers.Constant(float("nan"))
        self._history = self.add_state("history", (self.window, 2), "float32", unknown)
        self._signs = self.add_state("signs", (2,), "bool")  # whether to prune, whether to grow
        self._connections = self.add_state("connections", (len(self.kernels),), "int64")
        self._connections.assign(self.count())

    def numbers(self, step: tf.Tensor, connections: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns how many connections are dropped and how many grow, given the signs of the last epochs."""
        moved = self.number_moved(step, connections)
        prune, grow = tf.unstack(tf.convert_to_tensor(self._signs))
        real = self.fraction(step) * tf.cast(connections, tf.float64)
        more = tf.where(prune & (connections < sizes), tf.math.ceil(self.prune_share * real), 0.0)
        dropped = tf.minimum(moved + tf.cast(more, tf.int64), connections)
        # In float64, because the float32 value of 1.05 is smaller and would make int(20 * 1.05) 20.
        factor = tf.where(grow, tf.constant(1.0 + self.growth_share, tf.float64), 1.0)
        grown = tf.cast(tf.cast(moved, tf.float64) * factor, tf.int64)
        # At least one connection stays, and at most all entries are connected.
        left = connections - dropped
        return dropped, tf.clip_by_value(grown, tf.cast(left == 0, tf.int64), sizes - left)

    def masks_after(self, step: tf.Tensor, dense: Any) -> list[tf.Tensor]:
        """Returns the masks, with connections moved if an update is due, and counts the connections."""
        masks = super().masks_after(step, dense)
        counts = tf.cond(
            self.is_update(step),
            lambda: tf.stack([tf.math.count_nonzero(mask) for mask in masks]),
            lambda: tf.convert_to_tensor(self._connections),
        )
        assign_everywhere([(self._connections, counts)])
        return masks

    def end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Records the robustness after an epoch and decides what the next updates change."""
        found = (logs["adversarial_accuracy"] - logs["val_robust_accuracy"], logs["val_robust_loss"])
        history = np.concatenate([np.asarray(self._history)[1:], [found]]).astype("float32")
        self._history.assign(history)
        steps = np.diff(history[~np.isnan(history[:, 0])], axis=0)
        signs = [False, False]
        if len(steps) and epoch + 1 >= self.start_epoch:
            signs = [float(np.mean(each)) >= self.threshold for each in (steps[:, 0] > 0, steps[:, 1] >= 0)]
        self._signs.assign(signs)

    def check(self, network: Any) -> None:
        """Checks that masked-out entries are 0 and that the number of connections is that of the last update.

        Raises:
            RuntimeError: if one of them is not 0 or the number differs.
        """
        super(DynamicSparsity, self).check(network)
        expected = np.asarray(self._connections).tolist()
        if self.count() != expected:
            raise RuntimeError(f"The kernels have {self.count()} connections, not {expected}.")

    def within_budget(self) -> bool:
        """Returns `True`, because the method itself decides on the number of connections."""
        return True

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        names = ("start_epoch", "window", "threshold", "prune_share", "growth_share")
        return {**super().describe(), **{name: getattr(self, name) for name in names}}
