"""Where tensors lie: planes with zeros around the image, several images side by side in each position."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

MOST_FLOATS = 16  # of any vector; planes begin at multiples, and a store may run so far past the last position


@dataclasses.dataclass
class Tensor:
    """A tensor in the workspace.

    Attributes:
        shape: `(height, width, channels)`.
        border: Rows of zeros above, columns to the left, rows below and columns to the right.
        pitch: Positions from one row to the next.
        lanes: Images side by side.
        place: Float at which the first plane begins.
    """

    shape: tuple[int, int, int]
    lanes: int
    border: list[int] = dataclasses.field(default_factory=lambda: [0, 0, 0, 0])
    pitch: int = 0
    place: int = -1

    def widen(self, border: Sequence[int]) -> None:
        """Makes room for as many zeros around the image."""
        self.border = [max(have, need) for have, need in zip(self.border, border, strict=True)]
        self.pitch = max(self.pitch, self.border[1] + self.shape[1] + self.border[3])

    @property
    def row(self) -> int:
        """Floats from one row to the next."""
        return self.pitch * self.lanes

    @property
    def plane(self) -> int:
        """Floats from one channel to the next."""
        top, _, bottom, _ = self.border
        floats = (top + self.shape[0] + bottom) * self.row
        if self.lanes % MOST_FLOATS:
            floats += MOST_FLOATS
        floats = -(-floats // MOST_FLOATS) * MOST_FLOATS
        return floats + MOST_FLOATS * (floats % 1024 == 0)  # planes a page apart would share their places in the cache

    @property
    def size(self) -> int:
        """Floats of all planes."""
        return self.shape[2] * self.plane

    @property
    def geometry(self) -> tuple[int, ...]:
        """Tensors of equal geometry have their zeros in the same places."""
        return (*self.shape[:2], *self.border, self.pitch, self.lanes)

    def at(self, y: int = 0, x: int = 0) -> int:
        """Returns the place of a position of the first plane, counted from the first one of the image."""
        return self.place + (self.border[0] + y) * self.row + (self.border[1] + x) * self.lanes

    def offset(self, y: int, x: int) -> int:
        """Returns how many floats further a shifted position is."""
        return y * self.row + x * self.lanes


def level_pitches(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gives both tensors of each pair the same pitch, so that a run of positions is one in both."""
    pairs = list(pairs)
    changed = True
    while changed:
        changed = False
        for one, other in pairs:
            if one.pitch != other.pitch:
                one.pitch = other.pitch = max(one.pitch, other.pitch)
                changed = True


def level_borders(tensors: Sequence[Tensor]) -> None:
    """Gives tensors of equal height and width the same zeros around them."""
    borders: dict[tuple[int, int], list[int]] = {}
    for tensor in tensors:
        border = borders.setdefault(tensor.shape[:2], [0, 0, 0, 0])
        border[:] = map(max, border, tensor.border)
    for tensor in tensors:
        tensor.widen(borders[tensor.shape[:2]])


def place(uses: Sequence[Sequence[Tensor]]) -> int:
    """Gives each tensor a place, the same one to tensors that are never needed at the same time.

    Args:
        uses: Tensors that each step reads or writes, in order.

    Returns:
        The number of floats in use.
    """
    last = {id(tensor): number for number, step in enumerate(uses) for tensor in step}
    start = 0
    free: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    given: dict[int, tuple[int, int]] = {}
    for number, step in enumerate(uses):
        for tensor in step:
            if id(tensor) in given or tensor.place >= 0:
                continue
            fits = [slot for slot in free.get(tensor.geometry, []) if slot[1] >= tensor.size]
            if fits:
                slot = min(fits, key=lambda each: each[1])
                free[tensor.geometry].remove(slot)
            else:
                slot = (start, tensor.size)
                start += tensor.size
            given[id(tensor)] = slot
            tensor.place = slot[0]
        for tensor in {id(each): each for each in step}.values():
            if last[id(tensor)] == number and id(tensor) in given:
                free.setdefault(tensor.geometry, []).append(given[id(tensor)])
    return start


def aligned(size: int) -> np.ndarray:
    """Returns float32 zeros at an address that is a multiple of 64."""
    room = np.zeros(size + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size]
