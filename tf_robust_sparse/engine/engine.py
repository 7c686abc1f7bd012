"""Runs plans: NumPy in, NumPy out."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tf_robust_sparse.engine import library
from tf_robust_sparse.engine.layout import aligned
from tf_robust_sparse.engine.matrices import pack
from tf_robust_sparse.engine.plan import Plan


class Engine:
    """Runs one plan, several batches of `plan.lanes` images at a time on as many threads.

    Args:
        plan: What to run.
        threads: Number of threads.
        width: Floats of a vector, at most what the processor has; `None` for that.
    """

    def __init__(self, plan: Plan, threads: int = 1, width: int | None = None) -> None:
        self.plan = plan
        self.width = library.width() if width is None else width
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._free: list[np.ndarray] = []

    def pack(self, weights: Mapping[str, Sequence[np.ndarray | None]]) -> np.ndarray:
        """Returns weights as `run` takes them. See `matrices.pack`."""
        return pack(self.plan.matrices, weights)

    def logits(self, words: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Returns the outputs `(batch, classes)`, float32, of images `(batch, height, width, channels)`."""
        images = np.ascontiguousarray(images, np.float32)
        result = np.empty((len(images), self.plan.classes), np.float32)

        def compute(start: int) -> None:
            space = self._workspace()
            self._call(self.plan.forward, words, space, images[start : start + self.plan.lanes], result[start:])
            self._free.append(space)

        self._all(compute, len(images))
        return result

    def logits_and_spaces(self, words: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns the outputs, and the workspaces that `gradient` needs."""
        images = np.ascontiguousarray(images, np.float32)
        result = np.empty((len(images), self.plan.classes), np.float32)
        spaces: list[np.ndarray] = [self._workspace() for _ in range(0, len(images), self.plan.lanes)]

        def compute(start: int) -> None:
            space = spaces[start // self.plan.lanes]
            self._call(self.plan.forward, words, space, images[start : start + self.plan.lanes], result[start:])

        self._all(compute, len(images))
        return result, spaces

    def gradient(self, words: np.ndarray, spaces: Sequence[np.ndarray], upstream: np.ndarray) -> np.ndarray:
        """Returns the gradient by the images, and takes the workspaces back.

        Args:
            words: As of the forward pass.
            spaces: What `logits_and_spaces` returned, once.
            upstream: `(batch, classes)`, the gradient by the outputs.
        """
        upstream = np.ascontiguousarray(upstream, np.float32)
        result = np.empty((len(upstream), *self.plan.shape), np.float32)

        def compute(start: int) -> None:
            space = spaces[start // self.plan.lanes]
            self._call(self.plan.backward, words, space, upstream[start : start + self.plan.lanes], result[start:])

        self._all(compute, len(upstream))
        self._free.extend(spaces)
        return result

    def give_back(self, spaces: Sequence[np.ndarray]) -> None:
        """Takes workspaces back whose gradient nobody wants."""
        self._free.extend(spaces)

    def _workspace(self) -> np.ndarray:
        try:
            return self._free.pop()
        except IndexError:
            space = aligned(self.plan.space)
            for place, positions, pitch, width in self.plan.stencils:
                space[place : place + positions] = np.arange(positions) % pitch < width
            return space

    def _all(self, compute: Callable[[int], None], batch: int) -> None:
        starts = range(0, batch, self.plan.lanes)
        if self._pool is None or len(starts) == 1:
            for start in starts:
                compute(start)
        else:
            list(self._pool.map(compute, starts))

    def _call(self, ops: np.ndarray, words: np.ndarray, space: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        address = library.address
        library.library().trs_run(
            self.width, address(ops), len(ops), address(words), address(space), address(x), len(x), address(y)
        )
