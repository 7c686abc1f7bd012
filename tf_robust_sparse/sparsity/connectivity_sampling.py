"""Bayesian connectivity sampling: DEEP R with a single budget for the whole network."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.rewiring import RewiringKernel
from tf_robust_sparse.sparsity.allocation import draw_layers
from tf_robust_sparse.sparsity.draws import draw_dormant
from tf_robust_sparse.sparsity.integers import check_seed
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere, slots
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

NEWBORN = 1e-12  # theta of a new connection: it exists, but has no influence yet


class _Before(NamedTuple):
    """The state before an update: step, learning rate, flat positions of the connections."""

    step: tf.Tensor
    learning_rate: tf.Tensor
    connected: list[tf.Tensor]


class ConnectivitySampling(Sparsifier):
    """Keeps a global number of connections and moves them by random search while the network trains.

    After each update, every connected `theta` receives Gaussian noise. A connection whose `theta` is no longer positive
    is lost. New connections fill up the budget `K = int(entries * connectivity)`: their layers are drawn with
    probability proportional to size, their positions uniformly among the dormant ones. A new connection starts at
    `theta = 1e-12` and survives only if its next gradient increases it.

    Every draw depends on `seed` and the step alone, so replicas agree and a resumed run repeats them.

    Args:
        connectivity: Fraction of the kernel entries connected in the whole network, in (0, 1].
        noise_scaling: Standard deviation of the noise in units of the learning rate.
        l1: Strength of the L1 prior: connected `theta` lose `learning_rate * l1` per step.
        dormant_policy: `"freeze"` holds dormant entries and their momentum at 0, so that there are exactly `K`
            connections after each step. `"reference"` lets momentum and weight decay move them, as the authors' code
            does.
        init_policy: `"reference"` keeps the network's initial connections, `"exact"` removes or adds random ones
            until there are `K`.
        layer_prior: The probability of a layer to get a new connection is proportional to its `"size"` or its
            `"target"`, the size times the layer's initial connectivity.
        check_invariants: Whether to assert the counts inside the step; for tests and debugging.
        seed: Integer that fixes all draws.

    Raises:
        ValueError: if an argument is out of range or a policy unknown.

    Reference: Özdenizci and Legenstein, ICML 2021, section 3 and algorithm 1;
        [Bellec et al., 2018](https://arxiv.org/abs/1711.05136), algorithm 1.
    """

    parametrization = "rewiring"
    compiles_with_xla = False

    def __init__(
        self,
        connectivity: float,
        noise_scaling: float = 1e-6,
        l1: float = 0.0,
        dormant_policy: str = "freeze",
        init_policy: str = "reference",
        layer_prior: str = "size",
        check_invariants: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(connectivity)
        for name, value in (("noise_scaling", noise_scaling), ("l1", l1)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be at least 0 and finite. Received: {name}={value!r}")
        for name, choice, choices in (
            ("dormant_policy", dormant_policy, ("freeze", "reference")),
            ("init_policy", init_policy, ("reference", "exact")),
            ("layer_prior", layer_prior, ("size", "target")),
        ):
            if choice not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={choice!r}")
        self.noise_scaling = float(noise_scaling)
        self.l1 = float(l1)
        self.dormant_policy = dormant_policy
        self.init_policy = init_policy
        self.layer_prior = layer_prior
        self.check_invariants = bool(check_invariants)
        self.seed = check_seed(seed)
        # Entries below 0 are clamped to 0, or keep drifting.
        self._lowest = 0.0 if dormant_policy == "freeze" else tf.float32.min
        self.births: Any = None
        self.deaths: Any = None

    def fits(self, layer: Any) -> bool:
        """Returns whether the connections of a layer can be sampled."""
        return isinstance(layer, RewiringKernel)

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the rewiring layers of `network` and applies the initial policy.

        Raises:
            ValueError: if the network has other prunable layers or no rewiring layer.
        """
        super().attach(network)
        if self.layer_prior == "target":
            self._weights = [
                size * layer.initial_connectivity for size, layer in zip(self.sizes, self.layers, strict=True)
            ]
        else:
            self._weights = [float(size) for size in self.sizes]
        for name in ("births", "deaths"):
            counter = tf.Variable(
                tf.zeros(len(self.layers), tf.int64),
                trainable=False,
                name=name,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            setattr(self, name, counter)
        if self.dormant_policy == "freeze":
            for layer in self.layers:
                layer.theta.assign(tf.nn.relu(layer.theta))
        if self.init_policy == "exact":
            self._connect_exactly()
        self._count_at_first = sum(self.count())  # may exceed the budget for a while

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> _Before:
        """Returns step, learning rate and connections before the update."""
        return _Before(
            step=tf.cast(optimizer.iterations, tf.int32),
            learning_rate=tf.cast(optimizer.learning_rate, tf.float32),
            connected=_connected(self.layers),
        )

    def after_update(self, state: _Before, optimizer: keras.optimizers.Optimizer, dense: Any = None) -> None:
        """Adds noise, removes connections that are no longer positive, and draws new ones."""
        noise_seed, layer_seed, position_seed = tf.unstack(
            tf.random.experimental.stateless_split(tf.stack([self.seed, state.step]), 3)
        )
        before = tf.stack([tf.size(connected, tf.int64) for connected in state.connected])
        # Only connected entries are updated: at 1 % connectivity, noise for every entry would cost 100 times as much.
        noise = tf.random.stateless_normal([tf.reduce_sum(before)], noise_seed)
        steps = state.learning_rate * (self.noise_scaling * noise - self.l1)
        zero, last = tf.constant(0.0), tf.constant(-1)
        done: list[Any] = []
        for layer, connected, step in zip(
            self.layers, state.connected, tf.split(steps, before, num=len(self.layers)), strict=True
        ):
            with tf.control_dependencies(done):  # one layer after the other, which saves memory
                theta = _flat(layer.theta)
                moved = tf.maximum(tf.gather(theta, connected) + step, self._lowest)
                theta = tf.tensor_scatter_nd_update(theta, tf.expand_dims(connected, last), moved)
                theta = tf.reshape(theta, layer.theta.shape)
                updates = [(layer.theta, theta)]
                if self.dormant_policy == "freeze":  # momentum must not revive a lost connection
                    alive = theta > zero
                    updates += [(slot, tf.where(alive, slot, zero)) for slot in slots(optimizer, layer.theta)]
                done = assign_everywhere(updates)
        with tf.control_dependencies(done):
            living = _connected(self.layers)
        after = tf.stack([tf.size(connected, tf.int64) for connected in living])
        missing = tf.maximum(self.budget - tf.reduce_sum(after), 0)
        room = tf.constant(self.sizes, tf.int64) - after
        births = draw_layers(missing, self._weights, room, layer_seed)
        done += self._assertions(before, after, births)
        with tf.control_dependencies(done):
            born = draw_dormant(living, self.sizes, births, position_seed)
        for layer, positions in zip(self.layers, born, strict=True):
            with tf.control_dependencies(done):
                newborn = tf.fill(tf.shape(positions), NEWBORN)
                theta = tf.tensor_scatter_nd_update(_flat(layer.theta), tf.expand_dims(positions, last), newborn)
                done = assign_everywhere([(layer.theta, tf.reshape(theta, layer.theta.shape))])
        # Under the reference policy, momentum may revive connections, so the difference is the net loss.
        assign_everywhere([(self.births, self.births + births), (self.deaths, self.deaths + before - after)])

    def check(self, network: keras.Model) -> None:
        """Checks that there are at most as many connections as the budget allows or the network started with.

        Raises:
            RuntimeError: if there are more.
        """
        counts = self.count()
        for layer, count in zip(self.layers, counts, strict=True):
            if count == 0:
                warnings.warn(f"{layer.name} has lost all its connections.", stacklevel=2)
        if self.dormant_policy == "freeze":
            for layer in self.layers:
                stray = int(tf.math.count_nonzero(layer.theta < 0))
                if stray:
                    raise RuntimeError(f"{stray} dormant entries of {layer.name} are not zero.")
            if sum(counts) > max(self.budget, self._count_at_first):
                raise RuntimeError(f"The network has {sum(counts)} connections, more than the budget {self.budget}.")

    def turnover(self) -> dict[str, Any]:
        """Returns births and deaths per layer since the last call, and resets the counters."""
        births, deaths = (np.asarray(counter).tolist() for counter in (self.births, self.deaths))
        self.births.assign(tf.zeros_like(self.births))
        self.deaths.assign(tf.zeros_like(self.deaths))
        return {
            "births": dict(zip([layer.name for layer in self.layers], births, strict=True)),
            "deaths": dict(zip([layer.name for layer in self.layers], deaths, strict=True)),
        }

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {
            **super().describe(),
            "noise_scaling": self.noise_scaling,
            "l1": self.l1,
            "dormant_policy": self.dormant_policy,
            "init_policy": self.init_policy,
            "layer_prior": self.layer_prior,
            "budget": self.budget,
        }

    def _assertions(self, before: tf.Tensor, counts: tf.Tensor, births: tf.Tensor) -> list[Any]:
        if not self.check_invariants:
            return []
        total, after = tf.reduce_sum(counts), tf.reduce_sum(counts + births)
        assertions = [
            tf.debugging.assert_equal(after, tf.maximum(total, self.budget), "the budget was not filled"),
            tf.debugging.assert_less_equal(
                after, tf.constant(sum(self.sizes), tf.int64), "more connections than entries"
            ),
        ]
        if self.dormant_policy == "freeze":
            assertions.append(tf.debugging.assert_less_equal(counts, before, "momentum revived a dormant entry"))
        return assertions

    def _connect_exactly(self) -> None:
        """Removes or adds random connections until the network fills its budget; called outside of replicas."""
        generator = np.random.default_rng([self.seed, 0xE8AC7])
        thetas = [np.array(layer.theta) for layer in self.layers]
        counts = np.array([np.count_nonzero(theta > 0) for theta in thetas])
        surplus = int(counts.sum()) - self.budget
        if surplus > 0:
            drop = generator.choice(int(counts.sum()), surplus, replace=False)
            for index, theta in enumerate(thetas):
                first = counts[:index].sum()
                mine = drop[(drop >= first) & (drop < first + counts[index])] - first
                theta.flat[np.flatnonzero(theta > 0)[mine]] = 0.0
        elif surplus < 0:
            missing = draw_layers(
                tf.constant(-surplus, tf.int64),
                self._weights,
                tf.constant(self.sizes, tf.int64) - tf.constant(counts, tf.int64),
                tf.constant([self.seed, 0xE8AC7]),
            )
            for theta, count in zip(thetas, np.asarray(missing), strict=True):
                chosen = generator.choice(np.flatnonzero(theta <= 0), int(count), replace=False)
                fresh = keras.initializers.HeNormal(int(generator.integers(2**31)))(theta.shape)
                theta.flat[chosen] = np.abs(np.asarray(fresh)).flat[chosen]
        for layer, theta in zip(self.layers, thetas, strict=True):
            layer.theta.assign(theta)


def _flat(variable: Any) -> tf.Tensor:
    return tf.reshape(tf.convert_to_tensor(variable), (-1,))


def _connected(layers: Sequence[Any]) -> list[tf.Tensor]:
    """Returns the flat positions of the connections of each layer, ascending."""
    zero = tf.constant(0.0)
    return [tf.squeeze(tf.where(_flat(layer.theta) > zero), 1) for layer in layers]
