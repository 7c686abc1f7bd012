"""Auto-PGD: projected gradient ascent that chooses its own step size."""

import math
from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.apgd_steps import kept, l2_projected, signed_step, unit, with_momentum
from tf_robust_sparse.attacks.checkpoints import checkpoints, windows
from tf_robust_sparse.attacks.gradient_attack import check_integer, loss_gradient
from tf_robust_sparse.attacks.losses import cross_entropy, dlr, far_cross_entropy, targeted_dlr
from tf_robust_sparse.attacks.projections import (
    count_changed,
    distance,
    l1_ball,
    largest_entries,
    linf_bounds,
    per_example,
    pixel_range,
)
from tf_robust_sparse.attacks.staged_attack import AttackRun, StagedAttack, State, while_state
from tf_robust_sparse.attacks.target_order import CANDIDATES, by_distance
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import normal_like, uniform_like
from tf_robust_sparse.layers.selection import fast_where

Around = tuple[tf.Tensor, tf.Tensor]  # the ball: its bounds for Linf, else its center and radius
LOSSES = ("ce", "dlr", "targeted-dlr")
TARGET_ORDERS = ("logits", "malt")
MOMENTUM = 0.75


class APGD(StagedAttack):
    """Auto-PGD in three norms, on the cross entropy, the DLR loss or the targeted DLR loss.

    Steps have momentum and begin with size `2 * epsilon`. At each checkpoint the step size of an image is halved if its
    loss has oscillated or stood still, and the image then goes on from its best point. In the L1 norm steps are sparse,
    and the radius comes down in three phases.

    ```python
    x_adv = trs.attacks.APGD(epsilon=8 / 255, loss="dlr", num_steps=100)(network, x, y)
    ```

    Args:
        epsilon: Radius of the ball in the norm, in pixels of [0, 1], above 0.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        loss: `"ce"`, `"dlr"` or `"targeted-dlr"`. With fewer than four classes the targeted loss is the cross entropy
            of the target; with two the untargeted loss is the cross entropy.
        num_steps: Number of steps, at least 1.
        restarts: Number of runs (for each target), at least 1.
        num_targets: For the targeted loss, how many classes are aimed at, from the runner-up downward; never more than
            there are.
        eot_samples: How many gradients are averaged in each step, for randomized networks.
        rho: Share of the steps of a window in which the loss must rise to keep the step size, in [0, 1].
        random_start: Whether to start at a random point; else at the image.
        shrinking_radius: Whether L1 runs go through the radii `3, 2, 1` times epsilon; `None` for `True` in L1
            and `False` elsewhere.
        seed: Integer, the seed of the starting points when a call passes none.
        target_order: Order of the targets: `"logits"`, or `"malt"`, by the distance to their boundary if the network
            were linear, among the 100 largest logits. Three targets by distance find as much as nine by logits.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), algorithm 1;
        [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 3, for L1;
        [Melamed et al., 2024](https://arxiv.org/abs/2407.02240) for the order of targets.
    """

    def __init__(
        self,
        epsilon: float,
        norm: str = "Linf",
        loss: str = "ce",
        num_steps: int = 100,
        restarts: int = 1,
        num_targets: int = 9,
        eot_samples: int = 1,
        rho: float = 0.75,
        random_start: bool = True,
        shrinking_radius: bool | None = None,
        seed: int = 0,
        target_order: str = "logits",
    ) -> None:
        super().__init__(epsilon, norm, seed)
        if loss not in LOSSES:
            raise ValueError(f"`loss` is one of {', '.join(LOSSES)}. Received: loss={loss!r}")
        for name, value in (
            ("num_steps", num_steps),
            ("restarts", restarts),
            ("num_targets", num_targets),
            ("eot_samples", eot_samples),
        ):
            check_integer(name, value, 1, f"pass, for example, {name}=1")
        if not 0 <= rho <= 1:
            raise ValueError(f"`rho` is a share of the steps, in [0, 1]. Received: rho={rho!r}")
        if shrinking_radius and norm != "L1":
            raise ValueError(f'`shrinking_radius` is for norm="L1". Received: norm={norm!r}')
        if target_order not in TARGET_ORDERS or (target_order != "logits" and loss != "targeted-dlr"):
            raise ValueError(
                f'`target_order` is one of {", ".join(TARGET_ORDERS)}, and "logits" unless loss="targeted-dlr". '
                f"Received: target_order={target_order!r}, loss={loss!r}"
            )
        self.loss = loss
        self.target_order = target_order
        self.num_steps = int(num_steps)
        self.restarts = int(restarts)
        self.num_targets = int(num_targets)
        self.eot_samples = int(eot_samples)
        self.rho = float(rho)
        self.random_start = bool(random_start)
        self.shrinking_radius = norm == "L1" if shrinking_radius is None else bool(shrinking_radius)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name in logs: `apgd-ce`, `apgd-dlr` or `apgd-t`."""
        return "apgd-t" if self.loss == "targeted-dlr" else f"apgd-{self.loss}"

    def runs(self, num_classes: int) -> list[AttackRun]:
        """Returns one run per restart, or per target and restart."""
        ranks = [0]
        if self.loss == "targeted-dlr":
            most = num_classes - 1 if self.target_order == "logits" else min(num_classes - 1, CANDIDATES)
            ranks = [*range(2, 2 + min(self.num_targets, most))]
        radii, lengths = self._phases()
        return [AttackRun(restart, rank, radii, lengths) for rank in ranks for restart in range(self.restarts)]

    def classes_by_rank(self, forward, x, y):
        """See `StagedAttack`."""
        return (
            by_distance(forward, x, y, self.norm)
            if self.target_order == "malt"
            else super().classes_by_rank(forward, x, y)
        )

    def stages(self, iterations: int) -> list[int]:
        """Returns 10, because most images fall in the first ten iterations, and then the checkpoints."""
        ends = range(10, iterations, 10) if self.norm == "L1" else [10, *checkpoints(iterations)]
        return sorted({min(end, iterations) for end in ends} | {iterations})

    def gradient_passes(self) -> int:
        """Returns the number of gradients that are averaged."""
        return self.eot_samples

    def start(self, forward, x, y, seeds, target, epsilon):
        """See `StagedAttack`."""
        x_start = self._random_point(x, seeds, epsilon) if self.random_start else x
        if self.shrinking_radius:  # the start counts as the best point of an earlier phase
            return self._continued(forward, x, y, x_start, target, epsilon, tf.constant(0))
        # Used in L1 only: the first steps change a fifth of the pixels.
        everything = float(math.prod(x.shape[1:]))
        fraction, sparsity = tf.fill(tf.shape(y), 0.2), tf.fill(tf.shape(y), everything)
        return self._initial(forward, x, y, x_start, target, epsilon, fraction, sparsity, tf.constant(0))

    def next_phase(self, forward, x, y, state, epsilon):
        """See `StagedAttack`; starts at the best point so far, projected onto the new ball."""
        x_start = l1_ball(state["x_best"], x, epsilon)
        return self._continued(forward, x, y, x_start, state["target"], epsilon, state["phase"] + 1)

    def advance(self, forward, x, y, state, until, epsilon):
        """See `StagedAttack`."""
        around = linf_bounds(x, epsilon) if self.norm == "Linf" else (x, epsilon)
        return while_state(until, lambda now: self._step(forward, x, y, now, epsilon, around), state)

    def _phases(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        if not self.shrinking_radius:
            return (self.epsilon,), (self.num_steps,)
        # 30%, 30% and 40% of the steps, as in AutoAttack's code.
        first = math.ceil(0.3 * self.num_steps)
        second = min(first, self.num_steps - first)
        return (3 * self.epsilon, 2 * self.epsilon, self.epsilon), (first, second, self.num_steps - first - second)

    def _random_point(self, x: tf.Tensor, seeds: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        if self.norm == "Linf":
            # Scaled so that the farthest pixel of each image is at the border of the ball.
            noise = uniform_like(x, seeds, -1.0, 1.0)
            return pixel_range(
                x + epsilon * noise / (per_example(distance(noise, tf.zeros_like(x), "Linf"), x) + 1e-12)
            )
        noise = normal_like(x, seeds)
        if self.norm == "L2":
            return pixel_range(x + epsilon * unit(noise))
        return l1_ball(x + noise, x, epsilon)

    def _continued(
        self,
        forward: Forward,
        x: tf.Tensor,
        y: tf.Tensor,
        x_start: tf.Tensor,
        target: tf.Tensor,
        epsilon: tf.Tensor,
        phase: tf.Tensor,
    ) -> State:
        """Returns the state at a point; the number of pixels it changes decides how many pixels a step changes."""
        sparsity = count_changed(x_start, x)
        fraction = sparsity / math.prod(x.shape[1:]) / 1.5
        return self._initial(forward, x, y, x_start, target, epsilon, fraction, sparsity, phase)

    def _initial(
        self,
        forward: Forward,
        x: tf.Tensor,
        y: tf.Tensor,
        x_start: tf.Tensor,
        target: tf.Tensor,
        epsilon: tf.Tensor,
        fraction: tf.Tensor,
        sparsity: tf.Tensor,
        phase: tf.Tensor,
    ) -> State:
        loss, gradient, wrong = self._evaluate(forward, x_start, y, target)
        state = {
            "iteration": tf.constant(0),
            "counter": tf.constant(0),
            "phase": phase,
            "target": target,
            "x_current": x_start,
            "gradient": gradient,
            "x_best": x_start,
            "best_gradient": gradient,
            "best_loss": loss,
            "found": wrong,
            "x_found": x_start,
            "no_gradient": tf.reduce_all(tf.equal(gradient, 0), axis=list(range(1, x.shape.rank))),
        }
        if self.norm == "L1":
            # In L1 checkpoints are evenly spaced, 4% of the steps of a phase apart.
            lengths = [max(int(0.04 * length), 1) for length in self._phases()[1]]
            return state | {
                "window": tf.constant(lengths)[phase],
                "step": tf.fill(tf.shape(y), epsilon),
                "fraction": fraction,
                "sparsity": sparsity,
            }
        return state | {
            "window": tf.constant(windows(self.num_steps)[0]),
            "step": tf.fill(tf.shape(y), 2 * epsilon),
            "x_previous": x_start,
            "last_loss": tf.zeros_like(loss),  # the loss at the start does not count in the history
            "increases": tf.zeros_like(y, tf.int32),
            "reduced": tf.ones_like(y, tf.bool),  # so that the first checkpoint cannot find that the loss stood still
            "best_loss_before": loss,
        }

    def _step(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State, epsilon: tf.Tensor, around: Around
    ) -> State:
        x_current = state["x_current"]
        if self.norm == "L1":
            x_new = self._sparse_step(x, state, epsilon)
            state = dict(state)
        else:
            x_new = self._momentum_step(x, state, around)
            state = state | {"x_previous": x_current}
        loss, gradient, wrong = self._evaluate(forward, x_new, y, state["target"])
        better = loss > state["best_loss"]
        x_found, x_best, best_gradient = kept(
            wrong, better, x_new, gradient, state["x_found"], state["x_best"], state["best_gradient"]
        )
        state |= {
            "iteration": state["iteration"] + 1,
            "counter": state["counter"] + 1,
            "x_current": x_new,
            "gradient": gradient,
            "found": state["found"] | wrong,
            "x_found": x_found,
            "x_best": x_best,
            "best_gradient": best_gradient,
            "best_loss": tf.where(better, loss, state["best_loss"]),
        }
        if self.norm != "L1":
            state["increases"] += tf.cast(loss > state["last_loss"], tf.int32)
            state["last_loss"] = loss
        names = sorted(state)  # the branches of tf.cond return lists in one order

        def checkpoint() -> list[tf.Tensor]:
            after = self._sparse_checkpoint(x, state, epsilon) if self.norm == "L1" else self._checkpoint(x, state)
            return [after[name] for name in names]

        due = state["counter"] >= state["window"]
        values = tf.cond(due, checkpoint, lambda: [state[name] for name in names])
        return dict(zip(names, values, strict=True))

    def _momentum_step(self, x: tf.Tensor, state: State, around: Around) -> tf.Tensor:
        x_current, gradient, size = state["x_current"], state["gradient"], per_example(state["step"], x)
        # The first step has no previous one, so it has no momentum.
        share = tf.where(tf.equal(state["iteration"], 0), 1.0, MOMENTUM)
        if self.norm == "Linf":
            return signed_step(x_current, state["x_previous"], gradient, *around, size, share)
        ahead = l2_projected(x_current + size * unit(gradient), *around)
        return l2_projected(with_momentum(x_current, state["x_previous"], ahead, share), *around)

    def _sparse_step(self, x: tf.Tensor, state: State, epsilon: tf.Tensor) -> tf.Tensor:
        """Moves a fraction of the pixels, those of the largest gradients, all by the same amount."""
        size = tf.reshape(tf.abs(state["gradient"]), (tf.shape(x)[0], -1))
        pixels = tf.cast(tf.shape(size)[1], tf.float32)
        place = tf.cast(tf.clip_by_value((1 - state["fraction"]) * pixels, 0.0, pixels - 1), tf.int32)
        large = tf.reshape(largest_entries(size, tf.shape(size)[1] - place), tf.shape(x))
        direction = fast_where(large, tf.sign(state["gradient"]), 0)
        length = distance(direction, tf.zeros_like(x), "L1") + 1e-10
        return l1_ball(state["x_current"] + per_example(state["step"] / length, x) * direction, x, epsilon)

    def _checkpoint(self, x: tf.Tensor, state: State) -> State:
        """Halves the step size of the images whose loss has oscillated or stood still, and sends them back."""
        window = state["window"]
        oscillated = tf.cast(state["increases"], tf.float32) <= self.rho * tf.cast(window, tf.float32)
        # The last checkpoint did not halve the step size, and the best loss has not risen since.
        stood_still = ~state["reduced"] & (state["best_loss_before"] >= state["best_loss"])
        reduced = oscillated | stood_still
        smaller, smallest = max(int(0.03 * self.num_steps), 1), max(int(0.06 * self.num_steps), 1)
        return self._back_to_best(x, state, reduced) | {
            "counter": tf.zeros_like(state["counter"]),
            "window": tf.maximum(window - smaller, smallest),
            "step": tf.where(reduced, state["step"] / 2, state["step"]),
            "increases": tf.zeros_like(state["increases"]),
            "reduced": reduced,
            "best_loss_before": state["best_loss"],
        }

    def _sparse_checkpoint(self, x: tf.Tensor, state: State, epsilon: tf.Tensor) -> State:
        """Adapts the number of pixels that a step changes to the number that the best point has changed."""
        sparsity = count_changed(state["x_best"], x)
        # If the best point changes over 5% fewer pixels than before, restart from it with the full step size.
        sparser = sparsity / tf.maximum(state["sparsity"], 1e-30) < 0.95
        step = tf.where(sparser, epsilon, state["step"] / 1.5)
        return self._back_to_best(x, state, sparser) | {
            "counter": tf.zeros_like(state["counter"]),
            "fraction": sparsity / math.prod(x.shape[1:]) / 1.5,  # steps become sparser than the best point is
            "step": tf.clip_by_value(step, epsilon / 10, epsilon),
            "sparsity": sparsity,
        }

    @staticmethod
    def _back_to_best(x: tf.Tensor, state: State, which: tf.Tensor) -> State:
        return state | {
            "x_current": fast_where(which, state["x_best"], state["x_current"]),
            "gradient": fast_where(which, state["best_gradient"], state["gradient"]),
        }

    def _evaluate(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, target: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns loss and gradient of each image, and whether the network is wrong about it."""

        def once() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return loss_gradient(forward, x, y, lambda labels, logits: self._loss(labels, logits, target))

        if self.eot_samples == 1:
            return once()

        def add(index: tf.Tensor, total: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            loss, gradient, wrong = once()
            return index + 1, total + gradient, loss, wrong

        first = (tf.constant(0), tf.zeros_like(x), tf.zeros_like(y, tf.float32), tf.zeros_like(y, tf.bool))
        _, total, loss, wrong = tf.while_loop(
            lambda index, *_: index < self.eot_samples, add, first, parallel_iterations=1
        )
        return loss, total / self.eot_samples, wrong

    def _loss(self, y: tf.Tensor, logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        classes = logits.shape[-1] or 4
        if self.loss == "targeted-dlr":
            return targeted_dlr(y, logits, target) if classes >= 4 else -cross_entropy(target, logits)
        return dlr(y, logits) if self.loss == "dlr" and classes >= 3 else far_cross_entropy(y, logits)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {
            **super().get_config(),
            "loss": self.loss,
            "num_steps": self.num_steps,
            "restarts": self.restarts,
            "num_targets": self.num_targets,
            "eot_samples": self.eot_samples,
            "rho": self.rho,
            "random_start": self.random_start,
            "shrinking_radius": self.shrinking_radius,
            **({} if self.target_order == "logits" else {"target_order": self.target_order}),
        }
