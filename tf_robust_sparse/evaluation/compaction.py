"""Staged attacks on the images that are not broken yet, in batches of a few fixed sizes."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks.staged_attack import AttackRun, StagedAttack
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference

SMALLEST = 16


class CompactedAttack:
    """A staged attack against one network, compiled once.

    Whenever images are broken, the others move to the smallest batch size that holds them, see `batch_sizes`. Rows that
    fill up a batch repeat the first image. One trace serves all batch sizes, unless the model has a fixed one.

    On CPUs with at least two cores the two halves of a batch run at the same time, each in its own thread: one half
    uses the cores while the other does work that cannot be divided. The results are the same.

    Args:
        attack: The attack.
        forward: Function from images to float32 logits with a statically known number of classes.
        model: The model that `forward` calls; the kernels of a Keras model are cached for each stage.
        num_classes: Number of logits.
        batch_size: The full batch size.
        side_by_side: Whether halves may run at the same time; not for a model with a random state.
    """

    def __init__(
        self,
        attack: StagedAttack,
        forward: Forward,
        model: Any,
        num_classes: int,
        batch_size: int,
        side_by_side: bool = True,
    ) -> None:
        self.attack = attack
        self.runs = attack.runs(num_classes)
        fixed = isinstance((getattr(model, "input_shape", None) or (None,))[0], int)
        several_cores = (os.cpu_count() or 1) > 1 and not tf.config.list_logical_devices("GPU")
        faster = batch_size >= 2 * SMALLEST and several_cores
        self.halves = 2 if side_by_side and faster and not fixed else 1
        self.sizes = [batch_size] if fixed else batch_sizes(-(-batch_size // self.halves))
        self.iterations = 0  # of all images together
        self.starts = 0
        self.without_gradient = 0  # images whose first gradient was zero in the first run
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._functions = {
            name: _Compiled(getattr(attack, name), forward, model, batch_size if fixed else None)
            for name in ("classes_by_rank", "start", "start_again", "next_phase", "advance")
        }

    def traces(self) -> dict[str, int]:
        """Returns how often each compiled function was traced."""
        return {name: function.traces() for name, function in self._functions.items()}

    def __call__(
        self, x: np.ndarray, y: np.ndarray, seeds: Callable[[int], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attacks up to a batch of correctly classified images, all runs one after the other.

        Args:
            x: `(images, height, width, channels)`, float32, in [0, 1].
            y: `(images,)`, int64.
            seeds: Function from the number of a restart to the seeds of the images, `(images, 2)`, int64.

        Returns:
            Which images were broken, `(images,)` bool; and adversarial examples, or the clean image if none was found.
        """
        self._stop.clear()
        if self.halves == 1 or len(x) <= min(self.sizes[0], 2 * SMALLEST):
            return self._attack(x, y, seeds)

        def half(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            try:
                return self._attack(x[rows], y[rows], lambda restart: seeds(restart)[rows])
            except BaseException:
                self._stop.set()  # lets the other half end after its stage
                raise

        with ThreadPoolExecutor(self.halves) as pool:
            try:
                broken, x_adv = zip(*pool.map(half, np.array_split(np.arange(len(x)), self.halves)), strict=True)
            except BaseException:  # only this thread receives an interruption
                self._stop.set()
                raise
        return np.concatenate(broken), np.concatenate(x_adv)

    def _attack(
        self, x: np.ndarray, y: np.ndarray, seeds: Callable[[int], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        broken, x_adv = np.zeros(len(x), bool), x.copy()
        ranks = self._classes_by_rank(x, y) if any(run.rank for run in self.runs) else None
        for number, run in enumerate(self.runs):
            rows = np.flatnonzero(~broken)
            if not len(rows) or self._stop.is_set():
                break
            targets = y[rows] if ranks is None or not run.rank else ranks[rows, run.rank - 1]
            found = self._run(x[rows], y[rows], targets, seeds(run.restart)[rows], run, first=number == 0)
            for row, example in found:
                broken[rows[row]] = True
                x_adv[rows[row]] = example
        return broken, x_adv

    def _classes_by_rank(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        chosen = _padded(np.arange(len(x)), self._size(len(x)))
        ranks = self._functions["classes_by_rank"](tf.constant(x[chosen]), tf.constant(y[chosen]))
        return ranks.numpy()[: len(x)].astype(np.int64)

    def _run(
        self, x: np.ndarray, y: np.ndarray, targets: np.ndarray, seeds: np.ndarray, run: AttackRun, first: bool
    ) -> Any:
        """Yields (row, adversarial example) for the images that one run breaks."""
        rows = np.arange(len(x))  # the image in each row of the batch
        size = self._size(len(rows))
        chosen = _padded(rows, size)
        images, labels = tf.constant(x[chosen]), tf.constant(y[chosen])
        state: dict[str, tf.Tensor] = {}
        for phase, (radius, iterations) in enumerate(zip(run.epsilons, run.iterations, strict=True)):
            epsilon = tf.constant(radius, tf.float32)
            last_phase = phase == len(run.epsilons) - 1
            if phase:
                state = self._functions["next_phase"](images, labels, state, epsilon)
            else:
                start = self._functions["start_again" if run.restart else "start"]
                state = start(images, labels, tf.constant(seeds[chosen]), tf.constant(targets[chosen]), epsilon)
                if first and "no_gradient" in state:
                    self._count(without_gradient=int(state["no_gradient"].numpy()[: len(rows)].sum()))
            self._count(starts=len(rows))
            done = 0
            # Only the last phase has the final radius, so earlier phases drop no images.
            for end in self.attack.stages(iterations) if last_phase else [iterations]:
                if self._stop.is_set():
                    return
                state = self._functions["advance"](images, labels, state, tf.constant(end), epsilon)
                self._count(iterations=(end - done) * len(rows))
                done = end
                if not last_phase:
                    continue
                found = state["found"].numpy()[: len(rows)]
                if found.any():
                    examples = state["x_found"].numpy()
                    yield from ((rows[place], examples[place]) for place in np.flatnonzero(found))
                left = np.flatnonzero(~found)
                if not len(left):
                    return
                if found.any():
                    rows, size = rows[left], self._size(len(left))
                    places = tf.constant(_padded(left, size))
                    images, labels = tf.gather(images, places), tf.gather(labels, places)
                    state = {
                        name: tf.gather(value, places) if value.shape.rank else value for name, value in state.items()
                    }

    def _count(self, **numbers: int) -> None:
        with self._counting:
            for name, number in numbers.items():
                setattr(self, name, getattr(self, name) + number)

    def _size(self, count: int) -> int:
        return min(size for size in self.sizes if size >= count)


def batch_sizes(batch_size: int) -> list[int]:
    """Returns the full batch size and its eighths, then halves down to 16, in decreasing order.

    There are only a few sizes, because libraries prepare convolutions for each one. No size is below 16, except a full
    batch size below 16.
    """
    sizes = {batch_size, *(-(-batch_size * eighth // 8) for eighth in range(1, 8))}
    smallest = min(sizes)
    while smallest // 2 >= SMALLEST:
        smallest = (smallest + 1) // 2
        sizes.add(smallest)
    return sorted((size for size in sizes if size >= min(SMALLEST, batch_size)), reverse=True)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])


class _Compiled:
    """A method of an attack, traced once for batches of any size, or of the fixed size of the model."""

    def __init__(self, method: Callable[..., Any], forward: Forward, model: Any, batch_size: int | None) -> None:
        def call(*args: Any) -> Any:
            with cached_for_inference(model):
                return method(forward, *args)

        self._call = call
        self._batch_size = batch_size
        self._function: Any = None
        self._creating = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        with self._creating:
            if self._function is None:
                # All tensors except scalars have a row for each image.
                specs = tf.nest.map_structure(
                    lambda each: tf.TensorSpec(
                        (self._batch_size, *each.shape[1:]) if each.shape.rank else (), each.dtype
                    ),
                    args,
                )
                self._function = tf.function(self._call, input_signature=specs, autograph=False)
                self._function.get_concrete_function(*specs)
        return self._function(*args)

    def traces(self) -> int:
        return 0 if self._function is None else self._function.experimental_get_tracing_count()
