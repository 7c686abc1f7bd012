"""Seeds for layers that draw in training mode: gates, dropout and sampled kernels, repeatable and shared on demand.

A layer asks `draws` for its seeds. Inside a `training_noise` block they depend on the block's seed and on the layer's
place in the network, so every forward pass of the block sees the same draws and a resumed run repeats them. Outside
of one they come from TensorFlow's generator, which `keras.utils.set_random_seed` sets.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.layers.noise import fold_in, uniform_like

UNIT_INTERVAL = (1e-6, 1 - 1e-6)  # closer to 1, float32 rounds to 1, where the logit is infinite


class _Block(threading.local):
    """The block of this thread: its seed, the places of the layers, and the parts of its batches."""

    def __init__(self) -> None:
        self.seed: tf.Tensor | None = None
        self.places: dict[int, int] = {}
        self.parts = 1
        self.shared = True


_block = _Block()


@contextlib.contextmanager
def training_noise(network: keras.Model, seed: tf.Tensor, parts: int = 1, shared: bool = True) -> Iterator[None]:
    """Seeds everything that the layers of `network` draw in training mode inside the block.

    Args:
        network: The network.
        seed: `(2,)`, integers.
        parts: Number of batches that are joined in a forward pass, such as clean and attacked images.
        shared: Whether the parts see the same draws, row by row.
    """
    before = dict(vars(_block))
    places = {id(layer): place for place, layer in enumerate(all_layers(network))}
    vars(_block).update(seed=seed, places=places, parts=parts, shared=shared)
    try:
        yield
    finally:
        vars(_block).update(before)


@contextlib.contextmanager
def joined_parts(parts: int) -> Iterator[None]:
    """Declares that batches inside the block consist of `parts` joined batches."""
    before, _block.parts = _block.parts, parts
    try:
        yield
    finally:
        _block.parts = before


@contextlib.contextmanager
def pass_number(number: int) -> Iterator[None]:
    """Gives a forward pass inside the block draws that differ from other passes, unless draws are shared."""
    before = _block.seed
    if before is not None and not _block.shared and number:
        _block.seed = fold_in(before, number)
    try:
        yield
    finally:
        _block.seed = before


class Draws(NamedTuple):
    """The seeds of one layer in one forward pass.

    Attributes:
        seeds: One seed `(2,)` for each part of the batch that has its own draws.
        repeats: Number of parts that share the draws, which are repeated so often.
    """

    seeds: tuple[tf.Tensor, ...]
    repeats: int

    def once(self, x: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Returns each seed with the rows of `x` that it serves, without repetition."""
        rows = tf.shape(x)[0] // (len(self.seeds) * self.repeats)
        return [(seed, x[number * rows : (number + 1) * rows]) for number, seed in enumerate(self.seeds)]

    def joined(self, drawn: list[tf.Tensor]) -> tf.Tensor:
        """Joins the draws of each seed to those of the batch."""
        return tf.concat(drawn * self.repeats, axis=0)


def draws(layer: Any) -> Draws:
    """Returns the seeds of `layer` for this forward pass."""
    if _block.seed is None or id(layer) not in _block.places:
        return Draws((tf.random.uniform((2,), maxval=2**31 - 1, dtype=tf.int32),), 1)
    seed = fold_in(_block.seed, _block.places[id(layer)])
    if _block.shared or _block.parts == 1:
        return Draws((seed,), _block.parts)
    return Draws((seed, *(fold_in(seed, number) for number in range(1, _block.parts))), 1)


def uniform(shape_of: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns uniform noise in (0, 1) in the shape of a tensor `(batch, ...)`; each replica gets its own rows."""
    return uniform_like(shape_of, seed, *UNIT_INTERVAL)
