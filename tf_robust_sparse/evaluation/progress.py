"""Progress of a long count of images: a bar on a terminal, or a line every 30 seconds in a log file."""

import datetime
import sys
import time
from types import TracebackType

import tqdm

_SECONDS = 30.0  # between two lines of a log file


class Progress:
    """A context manager that counts images on standard error; entering it starts the clock.

    Args:
        title: Name of the work.
        total: Number of images to count, or `None` if it is unknown.
        shown: Whether to print anything.
        leaves: Whether the final count stays visible; `False` if the caller reports the result.
    """

    def __init__(self, title: str, total: int | None, shown: bool, leaves: bool = True) -> None:
        self._title, self._total, self._shown, self._leaves = title, total, shown, leaves
        self._bar: tqdm.tqdm | None = None
        self._done = 0
        self._robust: float | None = None

    def __enter__(self) -> "Progress":
        self._begun = self._last_line = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self._leaves and self._done:
            self._print_line()

    def advance(self, images: int, robust: float | None = None) -> None:
        """Counts more images, and shows the robust accuracy so far, in [0, 1]."""
        self._done += images
        self._robust = robust
        if not self._shown:
            return
        if sys.stderr.isatty():
            self._draw(images)
        elif time.perf_counter() - self._last_line >= _SECONDS:
            self._print_line()

    def skip(self, images: int) -> None:
        """Removes images that need no work from the total, because they would falsify the rate."""
        if self._total is not None:
            self._total -= images

    def _draw(self, images: int) -> None:
        if self._bar is None:  # created late, so that an early error leaves no empty bar
            self._bar = tqdm.tqdm(total=self._total, desc=self._title, unit=" images", leave=self._leaves, smoothing=0)
            # The bar counts time from its creation; add the time of the work before.
            self._bar.start_t -= time.perf_counter() - self._begun
        self._bar.total = self._total
        if self._robust is not None:
            self._bar.set_postfix(robust=f"{self._robust:.2%}", refresh=False)
        self._bar.update(images)

    def _print_line(self) -> None:
        now = time.perf_counter()
        seconds, self._last_line = max(now - self._begun, 1e-3), now
        rate = self._done / seconds
        words = [f"{self._done}{'' if self._total is None else f'/{self._total}'} images"]
        words.append(f"{rate:.3g} images/s" if rate >= 1 else f"{1 / rate:.3g} s/image")
        if self._robust is not None:
            words.append(f"{100 * self._robust:.2f} % robust")
        left = 0 if self._total is None else self._total - self._done
        about = f"{datetime.timedelta(seconds=round(left / rate))} left" if left else None
        words.append(about or f"{datetime.timedelta(seconds=round(seconds))}")
        print(f"{self._title}: {', '.join(words)}", file=sys.stderr, flush=True)
