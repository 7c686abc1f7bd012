"""The bookkeeping of repeated attacks: which images are not broken yet, and which are attacked next."""

from collections.abc import Callable, Iterator

import numpy as np

from tf_robust_sparse.evaluation.progress import Progress

Survives = Callable[[np.ndarray, int], np.ndarray]


def attack_survivors(
    standing: np.ndarray, restarts: int, batch_size: int, survives: Survives, progress: Progress
) -> tuple[np.ndarray, list[float]]:
    """Attacks repeatedly, each time only the images that no round has broken yet.

    Args:
        standing: `(images,)`, bool: which images are classified correctly so far. Not changed.
        restarts: Number of rounds.
        batch_size: Number of images attacked at a time. The last batch of a round is padded, so that a compiled attack
            is traced once.
        survives: `survives(rows, restart)`, from `(batch_size,)` indices of images to `(batch_size,)` bool: which of
            these images are still classified correctly.
        progress: Counts attacked images; its total is `images * restarts`, minus the broken images.

    Returns:
        Which images survive all rounds, `(images,)` bool; and the share of all images that survive after each round.
    """
    standing = standing.copy()
    history = []
    for restart in range(restarts):
        rows = np.flatnonzero(standing)
        progress.skip(len(standing) - len(rows))
        for padded, count in padded_batches(rows, batch_size):
            survived = np.asarray(survives(padded, restart))[:count]
            standing[padded[:count][~survived]] = False
            progress.advance(count, robust=standing.mean())
        history.append(float(standing.mean()))
    return standing, history


def padded_batches(rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts indices into batches of one size.

    Args:
        rows: `(n,)`, integers.
        batch_size: Size of each batch.

    Yields:
        `(batch_size,)` indices and how many of them count; the last batch repeats its first index to fill up.
    """
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        yield np.concatenate([part, np.repeat(part[:1], batch_size - len(part))]), len(part)
