"""Verified accuracy: the share of images on which bounds exclude every wrong class over a ball."""

import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify import table
from tf_robust_sparse.certify.bound_graph import bound_graph
from tf_robust_sparse.certify.bounds import check_choices, margins
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.layers import cached_kernels
from tf_robust_sparse.paths import user_path

_COLUMNS = ("idx", "label", "predict", "verified", "margin", "time")


class VerifiedImage(NamedTuple):
    """One line of the table: `margin` is the smallest lower bound of a margin, `seconds` its share of a batch."""

    image: int
    label: int
    prediction: int
    verified: bool
    margin: float
    seconds: float


class Verifier:
    """A validation check: which images are verified, that is, every margin of `margins` is positive over the ball.

    ```python
    checks = {"verified_accuracy": trs.certify.Verifier(epsilon=2 / 255, method="ibp")}
    model = trs.RobustModel(network, objective, validation_checks=checks)
    ```

    Args:
        epsilon: Radius in pixels of [0, 1], above 0 and, in l-infinity, below 1.
        method, slope, norm, tight, chunk, optimize_intermediate: See `margins`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        epsilon: float,
        method: str = "crown-ibp",
        *,
        slope: str = "adaptive",
        norm: str = "Linf",
        tight: bool = True,
        chunk: int = 4096,
        optimize_intermediate: bool = False,
    ) -> None:
        if (not 0 < epsilon < 1 and norm == "Linf") or not epsilon > 0:
            raise ValueError(
                f"`epsilon` is a radius in pixels of [0, 1], above 0 and, in Linf, below 1. Received: epsilon={epsilon}"
            )
        check_choices(method, slope, norm, optimize_intermediate)
        self.epsilon, self.method, self.slope, self.norm = float(epsilon), method, slope, norm
        self.tight, self.chunk, self.optimize_intermediate = tight, chunk, optimize_intermediate

    def smallest_margin(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """Returns the smallest lower bound of a margin of each image: `(batch,)`."""
        if self.method in ("ibp", "crown-ibp") or x.shape[0] is not None:
            return self._smallest_margin(network, x, y)
        # In a batch of unknown size `chunk` counts for each image, so bound one image after the other.
        return tf.map_fn(
            lambda one: self._smallest_margin(network, one[0][tf.newaxis], one[1][tf.newaxis])[0],
            (x, y),
            fn_output_signature=tf.TensorSpec(()),
            parallel_iterations=1,
        )

    def _smallest_margin(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        choices: dict[str, Any] = {"slope": self.slope, "norm": self.norm, "tight": self.tight, "chunk": self.chunk}
        choices["optimize_intermediate"] = self.optimize_intermediate
        return tf.reduce_min(margins(network, x, y, self.epsilon, self.method, **choices), axis=1)

    def __call__(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Any = None) -> tf.Tensor:
        """Returns whether each of the images `x` is verified as `y`: `(batch,)`, boolean.

        Args:
            network: See `margins`.
            x: `(batch, height, width, channels)`, in [0, 1].
            y: `(batch,)`, integer labels.
            seed: Not used, because bounds draw nothing.
        """
        del seed
        # A margin that is positive over the ball is positive at the image, so the prediction is correct too.
        return self.smallest_margin(network, x, y) > 0


def verify_images(
    network: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epsilon: float,
    method: str = "crown-ibp",
    path: str | os.PathLike | None = None,
    *,
    slope: str = "adaptive",
    norm: str = "Linf",
    tight: bool = True,
    chunk: int = 4096,
    optimize_intermediate: bool = False,
    batch_size: int = 64,
    skip: int = 1,
    max_examples: int | None = None,
    progress: Callable[[VerifiedImage], None] = lambda _: None,
) -> list[VerifiedImage]:
    """Verifies every `skip`-th image: the prediction is correct and every margin of `margins` positive over the ball.

    Args:
        network: See `margins`.
        x: `(images, height, width, channels)`, float32, in [0, 1].
        y: `(images,)`, integer labels.
        epsilon: Radius in pixels of [0, 1], above 0 and below 1.
        method, slope, norm, tight, chunk, optimize_intermediate: See `margins`.
        path: Tab-separated table, written batch by batch. Images in an existing table of the same settings are not
            verified again.
        batch_size: Number of images at once.
        skip: Distance between the images, at least 1.
        max_examples: Largest number of images to verify.
        progress: Called with each line.

    Raises:
        ValueError: if settings, pixels or labels are out of range, a layer has no rule, or the table is damaged
            or belongs to another network or other settings.
    """
    verifier = Verifier(
        epsilon,
        method,
        slope=slope,
        norm=norm,
        tight=tight,
        chunk=chunk,
        optimize_intermediate=optimize_intermediate,
    )
    if skip < 1 or (max_examples is not None and max_examples < 1):
        raise ValueError(
            f"`skip` and `max_examples` are at least 1. Received: skip={skip}, max_examples={max_examples}"
        )
    classes = bound_graph(network)[-1].shape[0]  # refuses a network without rules before a table is begun
    x = checked_images(x, tuple(network.input_shape[1:]))
    y = checked_labels(y, len(x), classes, why=f", because the network has {classes} logits")
    settings = {
        **{"method": method, "epsilon": float(epsilon), "norm": norm, "slope": slope, "tight": tight},
        **{"images": len(x), "of": table.fingerprint(network, x)},
        "rounding": "subtracted",  # tables without this word were written when margins above 1e-6 counted
        **(
            {"optimize_intermediate": True} if optimize_intermediate else {}
        ),  # absent by default, so that older tables can be continued
    }
    done = table.begin(user_path(path), settings, _COLUMNS, _parse) if path is not None else {}
    for image, row in done.items():
        if image >= len(y) or row.label != int(y[image]):
            raise ValueError(
                f"{path} has label {row.label} for image {image}: it belongs to other data; pass another file"
            )

    @tf.function(autograph=False)
    def bounded(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with cached_kernels(network):  # one mask for the bounds and for the prediction
            smallest = verifier.smallest_margin(network, images, labels)
            return smallest, tf.argmax(network(images, training=False), axis=1)

    shape = (batch_size, *np.shape(x)[1:])
    bounded = bounded.get_concrete_function(tf.TensorSpec(shape), tf.TensorSpec((batch_size,), tf.int64))

    wanted = range(0, len(x), skip)[:max_examples]
    left = [image for image in wanted if image not in done]
    for start in range(0, len(left), batch_size):
        chosen = np.array(left[start : start + batch_size])
        padded = np.concatenate([chosen, np.repeat(chosen[:1], batch_size - len(chosen))])  # one shape, one trace
        begin = time.perf_counter()
        smallest, predictions = (
            part.numpy() for part in bounded(tf.constant(x[padded], tf.float32), tf.constant(y[padded], tf.int64))
        )
        seconds = (time.perf_counter() - begin) / len(chosen)
        for image, margin, prediction in zip(chosen, smallest, predictions, strict=False):
            label = int(y[image])
            verified = bool(margin > 0) and prediction == label
            row = VerifiedImage(int(image), label, int(prediction), bool(verified), float(margin), seconds)
            done[row.image] = row
            if path is not None:
                table.append(user_path(path), _values(row))
            progress(row)
    return [done[image] for image in wanted]


def _values(row: VerifiedImage) -> tuple[Any, ...]:
    return (row.image, row.label, row.prediction, int(row.verified), repr(row.margin), f"{row.seconds:.3f}")


def _parse(words: list[str]) -> VerifiedImage | None:
    try:
        image, label, prediction, verified = (int(word) for word in words[:4])
        margin, seconds = float(words[4]), float(words[5])
    except ValueError:
        return None
    sane = 0 <= seconds < math.inf and verified in (0, 1) and (not verified or (margin > 0 and prediction == label))
    return VerifiedImage(image, label, prediction, bool(verified), margin, seconds) if sane else None
