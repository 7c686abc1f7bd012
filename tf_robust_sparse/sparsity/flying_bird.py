"""Flying Bird: connections that move under adversarial training, less and less often, at constant density."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_robust_sparse.schedules import cosine, linear, progress
from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity
from tf_robust_sparse.sparsity.integers import check_integer
from tf_robust_sparse.sparsity.rigl import finite_sizes

GROWTHS = ("gradient", "random")
LAST_FRACTION = 0.005


class FlyingBird(DynamicSparsity):
    """Drops the smallest weights of each kernel and grows as many where the gradient of the robust loss is largest.

    Unlike in `RigL`, the optimizer updates the weights in every step, the fraction that moves follows a cosine to 0.005
    over the whole training, counts are rounded up, and updates become less frequent after half of the steps.

    ```python
    report = trs.sparsify(model, connectivity=0.2, sparsifier=trs.sparsity.FlyingBird(end_step=78_200))
    ```

    Args:
        connectivity: Fraction of the entries that are connected, in (0, 1]; `None` leaves it to `trs.sparsify`.
        interval: Number of steps between updates.
        late_interval: Number of steps between updates after half of `end_step`.
        drop_fraction: Fraction of the connections that move at first, in [0, 1].
        end_step: Number of steps of the whole training.
        growth: `"gradient"`, as in the paper, or `"random"`, as in the scripts of its code.
        allocation, start, seed: See `DynamicSparsity`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Chen et al., 2022](https://arxiv.org/abs/2202.09844), section 3.
    """

    def __init__(
        self,
        connectivity: float | None = None,
        interval: int = 900,
        late_interval: int = 1_200,
        drop_fraction: float = 0.5,
        end_step: int = 78_200,
        growth: str = "gradient",
        allocation: str | Mapping[str, float] = "igq",
        start: str = "random",
        seed: int = 0,
    ) -> None:
        super().__init__(connectivity, interval, drop_fraction, end_step, allocation, start, seed)
        if growth not in GROWTHS:
            raise ValueError(f"`growth` must be one of {', '.join(GROWTHS)}. Received: growth={growth!r}")
        self.late_interval = check_integer("late_interval", late_interval, 1, "a number of steps")
        self.growth = growth
        self.needs_dense_gradients = growth == "gradient"

    def fraction(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the fraction of the connections that move at `step`: a cosine that ends at 0.005."""
        return linear(cosine(progress(step, 0, self.end_step, tf.float64)), LAST_FRACTION, self.drop_fraction)

    def number_moved(self, step: tf.Tensor, connections: tf.Tensor) -> tf.Tensor:
        """Returns how many of each kernel's connections move, rounded up."""
        return tf.cast(tf.math.ceil(self.fraction(step) * tf.cast(connections, tf.float64)), tf.int64)

    def is_update(self, step: tf.Tensor) -> tf.Tensor:
        """Returns whether connections move at `step`, the number of updates before this one."""
        interval = tf.where(2 * step < self.end_step, self.interval, self.late_interval)
        return (step > 0) & (step % tf.cast(interval, step.dtype) == 0) & (step <= self.end_step)

    def growth_scores(self, number: int, dense: Sequence[tf.Tensor] | None, seed: Any) -> tf.Tensor:
        """Returns the absolute gradients, or uniform draws."""
        if self.growth == "random":
            return tf.random.stateless_uniform(self.kernels[number].weight.shape, seed)
        return finite_sizes(dense, number, "FlyingBird")

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "late_interval": self.late_interval, "growth": self.growth}
