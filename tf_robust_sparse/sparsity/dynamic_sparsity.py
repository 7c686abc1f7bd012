"""Training with few connections from the start: at intervals, some are dropped and as many grow elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.schedules import cosine
from tf_robust_sparse.sparsity.allocation import layer_counts, layer_fractions
from tf_robust_sparse.sparsity.integers import check_integer, check_seed
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere

STARTS = ("random", "magnitude")
_STREAM = 0xD1A


class DynamicSparsity(MaskSparsifier):
    """Base class: every kernel keeps its number of connections and moves some of them every `interval` steps.

    An update at step `t`, up to `end_step`, drops the `n = int(fraction(t) * connections)` smallest weights of each
    kernel. Then `n` entries grow: those with the largest `growth_scores` among all entries that were not kept,
    including the dropped ones. A new connection starts at 0 without momentum; one that is dropped and grows again keeps
    its value. Counts are exact, and ties go to the first entry in memory order. Every draw depends on `seed`, the step
    and the kernel alone, so replicas agree and a resumed run repeats them.

    Args:
        connectivity: Fraction of the entries that are connected, in (0, 1]; `None` leaves it to `trs.sparsify`.
        interval: Number of steps between updates, at least 1.
        drop_fraction: Fraction of the connections that move in the first update, in [0, 1].
        end_step: The step of the last update, usually after three quarters of the training.
        allocation: How connections are spread over kernels, see `layer_fractions`.
        start: `"random"` initial connections, or those of largest `"magnitude"`, for a network that is already
            trained.
        seed: Integer in [0, 2**31) that fixes all draws.

    Raises:
        ValueError: if an argument is out of its range.
    """

    keeps_gradient_step = True  # whether the optimizer also updates the weights in a step that moves connections

    def __init__(
        self,
        connectivity: float | None = None,
        interval: int = 100,
        drop_fraction: float = 0.3,
        end_step: int = 75_000,
        allocation: str | Mapping[str, float] = "erk",
        start: str = "random",
        seed: int = 0,
    ) -> None:
        super().__init__(connectivity)
        if not 0 <= drop_fraction <= 1:
            raise ValueError(f"`drop_fraction` must be in [0, 1]. Received: drop_fraction={drop_fraction!r}")
        if start not in STARTS:
            raise ValueError(f"`start` must be one of {', '.join(STARTS)}. Received: start={start!r}")
        self.interval = check_integer("interval", interval, 1, "a number of steps")
        self.end_step = check_integer("end_step", end_step, 1, "a number of steps")
        self.seed = check_seed(seed)
        self.drop_fraction = float(drop_fraction)
        self.allocation = allocation
        self.first_masks = start
        self.moved: Any = None

    def fraction(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the fraction of the connections that move at `step`: a cosine that reaches 0 at `end_step`."""
        return self.drop_fraction * cosine(tf.cast(step, tf.float64) / self.end_step)

    def is_update(self, step: tf.Tensor) -> tf.Tensor:
        """Returns whether connections move at `step`, the number of updates before this one."""
        return (step > 0) & (step % self.interval == 0) & (step <= self.end_step)

    def number_moved(self, step: tf.Tensor, connections: tf.Tensor) -> tf.Tensor:
        """Returns how many of each kernel's connections move, int64."""
        return tf.cast(self.fraction(step) * tf.cast(connections, tf.float64), tf.int64)

    def numbers(self, step: tf.Tensor, connections: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns how many of each kernel's connections are dropped, and how many entries grow, int64."""
        count = self.number_moved(step, connections)
        return count, count

    def growth_scores(self, number: int, dense: Sequence[tf.Tensor] | None, seed: tf.Tensor) -> tf.Tensor:
        """Returns scores of the entries of kernel `number`, at least 0; the entries with the largest scores grow."""
        raise NotImplementedError(f"{type(self).__name__} must define `growth_scores`.")

    def start(self) -> None:
        """Chooses the initial connections."""
        fractions = layer_fractions(
            self.allocation,
            [kernel.sides for kernel in self.kernels],
            self.connectivity,
            names=[kernel.name for kernel in self.kernels],
        )
        counts = layer_counts(fractions, self.sizes, self.budget)
        generator = np.random.default_rng([self.seed, _STREAM])
        masks = []
        for kernel, count in zip(self.kernels, counts, strict=True):
            if self.first_masks == "magnitude":
                masks.append(layers.largest_mask(tf.abs(tf.convert_to_tensor(kernel.weight)), count))
            else:
                mask = np.zeros(kernel.size, bool)
                mask[generator.choice(kernel.size, count, replace=False, shuffle=False)] = True
                masks.append(tf.constant(mask.reshape(kernel.weight.shape)))
        assign_everywhere(list(self._new_masks(masks)))
        self.moved = tf.Variable(
            tf.zeros(len(masks), tf.int64),
            trainable=False,
            name="moved",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def rests(self, optimizer: Any) -> Any:
        """Returns whether the optimizer skips this step because connections move; `None` if it never skips one."""
        return None if self.keeps_gradient_step else self.is_update(self.before_update(optimizer))

    def masks_after(self, step: tf.Tensor, dense: Sequence[tf.Tensor] | None) -> list[tf.Tensor]:
        """Returns the masks, with connections moved if an update is due, and counts the new connections."""
        before = self.present_masks()

        *masks, born = tf.cond(
            self.is_update(step),
            lambda: self._moved_masks(step, dense),
            lambda: [*before, tf.zeros(len(before), tf.int64)],
        )
        assign_everywhere([(self.moved, self.moved + born)])
        return masks

    def check(self, network: Any) -> None:
        """Checks that masked-out entries are 0 and that the number of connections has not changed.

        Raises:
            RuntimeError: if one of them is not 0 or the number has changed.
        """
        super().check(network)
        if sum(self.count()) != self.budget:
            raise RuntimeError(f"The network has {sum(self.count())} connections, not the {self.budget} of its budget.")

    def turnover(self) -> dict[str, Any]:
        """Returns how many connections of each kernel are new since the last call."""
        moved = np.asarray(self.moved).tolist()
        self.moved.assign(tf.zeros_like(self.moved))
        return {"grown": dict(zip([kernel.name for kernel in self.kernels], moved, strict=True))}

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {
            **super().describe(),
            "interval": self.interval,
            "drop_fraction": self.drop_fraction,
            "end_step": self.end_step,
            "allocation": self.allocation if isinstance(self.allocation, str) else dict(self.allocation),
            "start": self.first_masks,
            "budget": self.budget,
        }

    def _moved_masks(self, step: tf.Tensor, dense: Sequence[tf.Tensor] | None) -> list[tf.Tensor]:
        at_step = tf.random.experimental.stateless_fold_in(tf.constant([self.seed, _STREAM], tf.int64), step)
        seeds = tf.map_fn(
            lambda number: tf.random.experimental.stateless_split(fold_in(at_step, number), 2),
            tf.range(len(self.kernels), dtype=tf.int64),
        )
        connections = tf.stack([tf.math.count_nonzero(mask) for mask in self.present_masks()])
        dropped, grown = self.numbers(step, connections, tf.constant(self.sizes, tf.int64))
        of_each = map(tf.unstack, (connections - dropped, grown, seeds[:, 0], seeds[:, 1]))
        masks: list[tf.Tensor] = []
        born: list[tf.Tensor] = []
        for number, (kernel, kept, new, noise_seed, growth_seed) in enumerate(zip(self.kernels, *of_each, strict=True)):
            scores = self.growth_scores(number, dense, growth_seed)
            flat = [tf.reshape(tf.cast(each, tf.float32), (-1,)) for each in (kernel.weight, scores)]
            with tf.control_dependencies(born[-1:]):  # one kernel after the other, which saves memory
                mask, count = _moved(tf.reshape(kernel.mask, (-1,)), *flat, kept, new, noise_seed)
            masks.append(tf.reshape(mask, kernel.mask.shape))
            born.append(count)
        return [*masks, tf.stack(born)]


@tf.function(  # traced once, so the graph of a step that calls it for many kernels stays small
    input_signature=[
        tf.TensorSpec([None], tf.bool),
        *[tf.TensorSpec([None], tf.float32)] * 2,
        *[tf.TensorSpec([], tf.int64)] * 2,
        tf.TensorSpec([2], tf.int64),
    ],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _moved(
    mask: tf.Tensor, weight: tf.Tensor, scores: tf.Tensor, kept: tf.Tensor, grown: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the mask of the `kept` largest connections and the `grown` other entries with the largest scores.

    Also returns how many connections are new.
    """
    # Noise breaks ties between equal weights, such as connections that have just grown, which are 0. Entries at -1 rank
    # below all others: `sizes` and `scores` are not negative but for the tiny noise.
    sizes = tf.abs(weight) + 1e-5 * tf.random.stateless_normal(tf.shape(weight), seed)
    stay = layers.largest_mask(fast_where(mask, sizes, -1.0), kept)
    moved = stay | layers.largest_mask(fast_where(stay, -tf.ones_like(scores), scores), grown)
    return moved, tf.math.count_nonzero(moved & ~mask)
