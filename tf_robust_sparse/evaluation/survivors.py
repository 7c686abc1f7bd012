"""The bookkeeping of repeated attacks: who still stands, and who is attacked next."""

from collections.abc import Callable, Iterator

import numpy as np

from tf_robust_sparse.evaluation.progress import Progress

Survives = Callable[[np.ndarray, int], np.ndarray]


def attack_survivors(
    standing: np.ndarray, restarts: int, batch_size: int, survives: Survives, progress: Progress
) -> tuple[np.ndarray, list[float]]:
    """Attacks again and again, each time only the images that no attack has broken yet.

    Args:
        standing: `(images,)`, bool: which images are classified correctly so far. Not changed.
        restarts: Number of rounds.
        batch_size: Number of images attacked at a time. The last batch of a round is padded to it, so a compiled attack
            is traced once.
        survives: `survives(rows, restart)`, from `(batch_size,)` indices of images to `(batch_size,)` bool: which of
            them are still classified correctly.
        progress: Counts attacked images; of `images * restarts` those that have fallen are taken out.

    Returns:
        Which images stand after all rounds, `(images,)` bool; and the share of all images that stand after each round.
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
        `(batch_size,)` indices, of which the last batch repeats its first one to fill up; and how many of them count.
    """
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        yield np.concatenate([part, np.repeat(part[:1], batch_size - len(part))]), len(part)
