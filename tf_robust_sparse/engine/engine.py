"""Runs plans: NumPy in, NumPy out."""

import ctypes
import math
from collections.abc import Mapping, Sequence

import numpy as np

from tf_robust_sparse.engine import library
from tf_robust_sparse.engine.layout import aligned
from tf_robust_sparse.engine.matrices import Packer
from tf_robust_sparse.engine.plan import Plan

_WORTH_A_THREAD = 400_000  # values that are computed, below which another thread takes longer than it saves


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
        self.threads = threads
        sizes = plan.forward[["channels", "height", "width", "lanes"]]
        self._values = sum(math.prod(map(int, op)) for op in sizes)  # of a slice
        self._packer: Packer | None = None
        self._free: list[np.ndarray] = []

    def pack(self, weights: Mapping[str, Sequence[np.ndarray | None]]) -> np.ndarray:
        """Returns weights as the passes take them, of the same shapes in all calls. See `Packer`."""
        if self._packer is None:
            self._packer = Packer(self.plan.matrices, weights)
        return self._packer(weights, self.threads)

    def logits(self, words: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Returns the outputs `(batch, classes)`, float32, of images `(batch, height, width, channels)`."""
        spaces = self._workspaces(min(self.threads, max(self._slices(len(images)), 1)))
        result = self._run(self.plan.forward, words, spaces, False, images, (self.plan.classes,))
        self.give_back(spaces)
        return result

    def logits_and_spaces(self, words: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns the outputs, and the workspaces that `gradient` needs."""
        spaces = self._workspaces(self._slices(len(images)))
        return self._run(self.plan.forward, words, spaces, True, images, (self.plan.classes,)), spaces

    def gradient(self, words: np.ndarray, spaces: list[np.ndarray], upstream: np.ndarray) -> np.ndarray:
        """Returns the gradient by the images, and takes the workspaces back.

        Args:
            words: As of the forward pass.
            spaces: What `logits_and_spaces` returned, once.
            upstream: `(batch, classes)`, the gradient by the outputs.
        """
        result = self._run(self.plan.backward, words, spaces, True, upstream, self.plan.shape)
        self.give_back(spaces)
        return result

    def give_back(self, spaces: Sequence[np.ndarray]) -> None:
        """Takes workspaces back whose gradient nobody wants."""
        self._free.extend(spaces)

    def _slices(self, images: int) -> int:
        return -(-images // self.plan.lanes)

    def _workspaces(self, count: int) -> list[np.ndarray]:
        spaces: list[np.ndarray] = []
        del self._free[count:]  # of a larger batch before
        while len(spaces) < count:
            try:
                spaces.append(self._free.pop())
            except IndexError:
                spaces.append(aligned(self.plan.space))
                for place, positions, pitch, width in self.plan.stencils:
                    spaces[-1][place : place + positions] = np.arange(positions) % pitch < width
        return spaces

    def _run(
        self,
        ops: np.ndarray,
        words: np.ndarray,
        spaces: Sequence[np.ndarray],
        kept: bool,
        x: np.ndarray,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((len(x), *shape), np.float32)
        if len(x):
            address = library.address
            places = np.array([address(space) for space in spaces], np.uintp)
            given = (address(ops), len(ops), address(words), address(places), kept, address(x), x[0].size, len(x))
            batch = library.Batch(self.width, *given, self.plan.lanes, address(y), y[0].size)
            worth = 1 + self._slices(len(x)) * self._values // _WORTH_A_THREAD
            library.library().trs_run_batch(ctypes.byref(batch), min(self.threads, worth))
        return y
