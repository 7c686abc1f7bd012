"""DDN: decoupled direction and norm."""

from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import check_integer, check_positive, loss_gradient
from tf_robust_sparse.attacks.losses import log_odds
from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack, cosine
from tf_robust_sparse.attacks.projections import normalized, per_example, pixel_range
from tf_robust_sparse.attacks.staged_attack import State
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import fold_in, normal_like
from tf_robust_sparse.layers.selection import fast_where


class DDN(MinimumNormAttack):
    """Minimum-norm attack in the L2 norm that treats direction and length of the perturbation apart.

    A step follows the gradient of the cross entropy, and then scales the perturbation to a length that is a little
    smaller while it is adversarial, and a little larger while it is not.

    ```python
    found = trs.attacks.DDN(num_steps=100).nearest(network, x, y)
    ```

    Args:
        num_steps: Number of steps, each one gradient.
        init_norm: Length before the first step, in pixels of [0, 1], above 0.
        decay: Share by which the length changes in a step, in (0, 1).
        levels: Number of levels to which perturbed images are rounded, such as 256; `None` for none.
        seed: Integer, the seed of the directions of images without a gradient, when a call passes none.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Rony et al., 2019](https://arxiv.org/abs/1811.09600), algorithm 1.
    """

    norms = ("L2",)

    def __init__(
        self,
        num_steps: int = 100,
        init_norm: float = 1.0,
        decay: float = 0.05,
        levels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__("L2", num_steps, seed)
        check_positive("init_norm", init_norm)
        check_positive("decay", decay, 1)
        if levels is not None:
            check_integer("levels", levels, 2, "pass levels=256 for images of 8 bits, or None")
        self.init_norm = float(init_norm)
        self.decay = float(decay)
        self.levels = None if levels is None else int(levels)

    def _start(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor) -> State:
        return {"length": tf.fill(tf.shape(y), self.init_norm), "seeds": seeds}

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State) -> State:
        _, gradient, wrong = loss_gradient(forward, state["x_current"], y, log_odds)
        state, _ = self._kept(x, wrong, state)
        direction = normalized(gradient)
        somewhere = normalized(normal_like(x, fold_in(state["seeds"], state["iteration"])))
        flat = tf.reduce_all(tf.equal(gradient, 0), axis=list(range(1, x.shape.rank)))
        direction = fast_where(flat, somewhere, direction)
        length = state["length"] * tf.where(wrong, 1 - self.decay, 1 + self.decay)
        length = tf.minimum(length, self.farthest(x))
        moved = state["x_current"] + cosine(state["iteration"], 1.0, 0.01, self.num_steps) * direction
        x_new = pixel_range(x + normalized(moved - x) * per_example(length, x))
        if self.levels is not None:
            x_new = tf.round(x_new * (self.levels - 1)) / (self.levels - 1)
        return state | {"length": length, "x_current": x_new}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        names = ("num_steps", "init_norm", "decay", "levels", "seed")
        return {name: getattr(self, name) for name in names}
