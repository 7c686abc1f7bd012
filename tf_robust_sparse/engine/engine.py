"""Runs plans: NumPy in, NumPy out."""

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tf_robust_sparse.engine import library
from tf_robust_sparse.engine.layout import aligned
from tf_robust_sparse.engine.matrices import Packer
from tf_robust_sparse.engine.plan import Plan

_WORTH_A_THREAD = 400_000  # values that are computed, below which another thread takes longer than it saves


class Placed(NamedTuple):
    """An array and where its data begin, which takes NumPy a microsecond to say."""

    array: np.ndarray
    address: int


def _placed(array: np.ndarray) -> Placed:
    return Placed(array, library.address(array))


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
        self._forward, self._backward = _placed(plan.forward), _placed(plan.backward)
        self._free: list[Placed] = []

    def pack(self, weights: Mapping[str, Sequence[np.ndarray | None]]) -> np.ndarray:
        """Returns weights as the passes take them, of the same shapes in all calls. See `Packer`."""
        if self._packer is None:
            self._packer = Packer(self.plan.matrices, weights)
        return self._packer(weights, self.threads)

    def logits(self, words: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Returns the outputs `(batch, classes)`, float32, of images `(batch, height, width, channels)`."""
        spaces = self._workspaces(min(self.threads, max(self._slices(len(images)), 1)))
        result = self._run(self._forward, words, spaces, False, images, (self.plan.classes,))
        self.give_back(spaces)
        return result

    def logits_and_spaces(self, words: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, list[Placed]]:
        """Returns the outputs, and the workspaces that `gradient` needs."""
        spaces = self._workspaces(self._slices(len(images)))
        return self._run(self._forward, words, spaces, True, images, (self.plan.classes,)), spaces

    def gradient(self, words: np.ndarray, spaces: list[Placed], upstream: np.ndarray) -> np.ndarray:
        """Returns the gradient by the images, and takes the workspaces back.

        Args:
            words: As of the forward pass.
            spaces: What `logits_and_spaces` returned, once.
            upstream: `(batch, classes)`, the gradient by the outputs.
        """
        result = self._run(self._backward, words, spaces, True, upstream, self.plan.shape)
        self.give_back(spaces)
        return result

    def give_back(self, spaces: Sequence[Placed]) -> None:
        """Takes workspaces back whose gradient nobody wants."""
        self._free.extend(spaces)

    def _slices(self, images: int) -> int:
        return -(-images // self.plan.lanes)

    def _workspaces(self, count: int) -> list[Placed]:
        spaces: list[Placed] = []
        del self._free[count:]  # of a larger batch before
        while len(spaces) < count:
            try:
                spaces.append(self._free.pop())
            except IndexError:
                spaces.append(_placed(aligned(self.plan.space)))
                for place, positions, pitch, width in self.plan.stencils:
                    spaces[-1].array[place : place + positions] = np.arange(positions) % pitch < width
        return spaces

    def _run(
        self,
        ops: Placed,
        words: np.ndarray,
        spaces: Sequence[Placed],
        kept: bool,
        x: np.ndarray,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        images = len(x)
        y = np.empty((images, *shape), np.float32)
        if images:
            places = (ctypes.c_void_p * len(spaces))(*(space.address for space in spaces))
            given = (ops.address, len(ops.array), library.address(words), ctypes.addressof(places), kept)
            pixels, outputs = (library.address(x), x.size // images), (library.address(y), y.size // images)
            batch = library.Batch(self.width, *given, *pixels, images, self.plan.lanes, *outputs)
            worth = 1 + self._slices(images) * self._values // _WORTH_A_THREAD
            library.library().trs_run_batch(ctypes.byref(batch), min(self.threads, worth))
        return y
