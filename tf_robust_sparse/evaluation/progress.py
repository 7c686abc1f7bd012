"""A progress bar on standard error."""

import sys
from types import TracebackType

import tqdm


class Progress:
    """Counts images on standard error, as a context manager.

    Args:
        title: What is being done.
        total: Number of images to count.
        shown: Whether to print anything.
    """

    def __init__(self, title: str, total: int, shown: bool) -> None:
        self._title, self._total, self._shown = title, total, shown
        self._bar: tqdm.tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, images: int, robust: float | None = None) -> None:
        """Counts images on, and shows the robust accuracy so far, in [0, 1]."""
        if self._bar is None:  # not before, so that an error before the first image leaves no empty bar
            seconds = 0.1 if sys.stderr.isatty() else 20.0  # a log file needs a line now and then, not ten a second
            self._bar = tqdm.tqdm(
                total=self._total,
                desc=self._title,
                unit="image",
                disable=not self._shown,
                mininterval=seconds,
                maxinterval=2 * seconds,
            )
        if robust is not None:
            self._bar.set_postfix(robust=f"{robust:.2%}", refresh=False)
        self._bar.update(images)
