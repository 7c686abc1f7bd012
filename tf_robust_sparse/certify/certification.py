"""Certificates of many images, in a table that grows line by line and can be continued."""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_robust_sparse.certify import table
from tf_robust_sparse.certify.smoothing import ABSTAIN, SmoothedClassifier, check_settings
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.paths import user_path

_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


class CertifiedImage(NamedTuple):
    """One line of the table; `image` is its index, `radius` an l2 distance in pixels of [0, 1]."""

    image: int
    label: int
    prediction: int
    radius: float
    correct: bool
    seconds: float


def certify_images(
    smoothed: SmoothedClassifier,
    x: np.ndarray,
    y: np.ndarray,
    path: str | os.PathLike | None = None,
    *,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    skip: int = 1,
    max_examples: int | None = None,
    progress: Callable[[CertifiedImage], None] = lambda _: None,
) -> list[CertifiedImage]:
    """Certifies every `skip`-th image.

    Args:
        smoothed: The classifier.
        x: `(images, height, width, channels)`, in [0, 1].
        y: `(images,)`, integer labels.
        path: Tab-separated table, written line by line. Images in an existing table of the same settings are not
            certified again. The noise of an image depends on its index, so the result is the same.
        n0, n, alpha: See `SmoothedClassifier.certify`.
        skip: Distance between the images, at least 1.
        max_examples: Largest number of images to certify.
        progress: Called with each line.

    Raises:
        ValueError: if settings or pixels are out of range, or the table is damaged or belongs to another network or
            other settings.
    """
    check_settings(n0, n, alpha)
    if skip < 1 or (max_examples is not None and max_examples < 1):
        raise ValueError(
            f"`skip` and `max_examples` are at least 1. Received: skip={skip}, max_examples={max_examples}"
        )
    x = checked_images(x)
    y = checked_labels(y, len(x))
    settings = {
        **{"sigma": smoothed.sigma, "seed": smoothed.seed, "batch_size": smoothed.batch_size},
        **{"n0": n0, "n": n, "alpha": alpha, "images": len(x), "of": table.fingerprint(smoothed.model, x)},
    }
    chosen = range(0, len(x), skip)[:max_examples]
    done = table.begin(user_path(path), settings, _COLUMNS, _parse) if path is not None else {}
    rows = []
    for index in chosen:
        row = done.get(index)
        if row is None:
            begin = time.perf_counter()
            found = smoothed.certify(x[index], n0, n, alpha, index)
            correct = found.prediction == int(y[index])
            seconds = time.perf_counter() - begin
            row = CertifiedImage(index, int(y[index]), found.prediction, found.radius, correct, seconds)
            if path is not None:
                table.append(user_path(path), _values(row))
        elif row.label != int(y[index]):
            raise ValueError(
                f"{os.fspath(path) if path else ''} has label {row.label} for image {index}, but the data has "
                f"{int(y[index])}: it belongs to other data; pass another file"
            )
        rows.append(row)
        progress(row)
    return rows


def certified_accuracy(rows: Sequence[CertifiedImage], radii: Sequence[float]) -> list[float]:
    """Returns the share of `rows` that are correct and certified to each radius; radius 0 gives the clean accuracy."""
    reached = np.array([row.radius if row.correct and row.prediction != ABSTAIN else -1.0 for row in rows])
    return [float((reached >= radius).mean()) for radius in radii]


def _values(row: CertifiedImage) -> tuple[Any, ...]:
    return (row.image, row.label, row.prediction, repr(row.radius), int(row.correct), f"{row.seconds:.3f}")


def _parse(words: list[str]) -> CertifiedImage | None:
    try:
        image, label, prediction = (int(word) for word in words[:3])
        radius, correct, seconds = float(words[3]), int(words[4]), float(words[5])
    except ValueError:
        return None
    sane = 0 <= radius < math.inf and 0 <= seconds < math.inf and correct in (0, 1) and correct == (prediction == label)
    return CertifiedImage(image, label, prediction, radius, bool(correct), seconds) if sane else None
