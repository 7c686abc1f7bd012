"""Distances to the nearest adversarial examples, and the robust accuracy at every radius that follows from them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack
from tf_robust_sparse.attacks.projections import pixel_range
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.clean import check_finite, clean_answers
from tf_robust_sparse.evaluation.examples import check_image_shape, collect_examples, fixed_batch_size
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.robust_accuracy import masked_gradients
from tf_robust_sparse.evaluation.survivors import padded_batches
from tf_robust_sparse.layers.forward import Forward, inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.selection import fast_where

CURVE_POINTS = 100
BEYOND = (1e-4, 1e-3, 1e-2)  # shares of the perturbation


class NearestExamples(NamedTuple):
    """The adversarial examples nearest to the images.

    Attributes:
        distance: `(images,)`, float32: distance in the norm of the attack; 0 for images that are misclassified as they
            are, infinite where nothing was found.
        x_adv: `(images, ...)`, float32: the examples; the image itself where nothing was found.
    """

    distance: np.ndarray
    x_adv: np.ndarray


def minimum_norms(
    model: Callable[..., Any],
    dataset: Any,
    attack: MinimumNormAttack,
    max_examples: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures how far the nearest adversarial example of each image is, and the robust accuracy at every radius.

    An image is robust at a radius if its nearest example is further away. So one attack gives the whole security curve,
    which never rises. Like every attack it can only overestimate robustness.

    ```python
    found = trs.evaluation.minimum_norms(network, (x, y), trs.attacks.FMN("Linf"))
    found["median_distance"], found["points"]
    ```

    Args:
        model: Keras model, or any callable from images to logits, such as `load_saved_model(path)`.
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or a tuple of arrays; images `(batch, ...)`, floating, in
            `[0, 1]`; labels `(batch,)`, integers.
        attack: `FMN`, `DDN`, `DeepFool`, `SigmaZero` or `HOFMN`.
        max_examples: Number of images to use, from the first on; `None` for all.
        batch_size: Number of images attacked at a time; `None` for the batch size of the data set.
        progress: Whether to show a bar on standard error.

    Returns:
        Plain values, ready for a results file: the settings of the attack, `images`, `clean_accuracy`,
        `median_distance` (over all images; `None` if it is infinite), `distances` (one per image; `None` where nothing
        was found), `points` of the security curve (`epsilon`, `robust_accuracy`), `seconds`, `flags` and
        `flag_names` (reasons to doubt the numbers).

    Raises:
        ValueError: if the attack, the data or the logits are malformed.
    """
    if not isinstance(attack, MinimumNormAttack):
        raise ValueError(
            f"`attack` looks for the nearest example, such as trs.attacks.FMN('Linf'). Received: attack={attack!r}"
        )
    begin = time.perf_counter()
    x, y, data_batch_size = collect_examples(dataset, max_examples)
    check_image_shape(model, x)
    size = fixed_batch_size(model, batch_size or data_batch_size, len(x))
    clean = clean_answers(inference_forward(model), x, y, size)
    flags = clean.flags + masked_gradients(model, x, y, clean.correct, size, type(attack).__name__)
    distance = nearest_examples(model, attack, x, y, size, type(attack).__name__, progress).distance
    return {
        **attack.describe(),
        "images": len(x),
        "clean_accuracy": clean.accuracy,
        **distances_as_results(distance, attack.norm),
        "seconds": time.perf_counter() - begin,
        **safety.as_results(flags),
    }


def nearest_examples(
    model: Callable[..., Any],
    attack: MinimumNormAttack,
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    title: str,
    progress: bool,
) -> NearestExamples:
    """Attacks images in batches of one size, so that the attack is compiled once.

    Args:
        model: Keras model, or any callable from images to logits.
        attack: The attack; the seeds of images follow from its seed and their index.
        x: `(images, ...)`, float32, in `[0, 1]`.
        y: `(images,)`, int64.
        batch_size: Number of images attacked at a time.
        title: Title of the progress bar.
        progress: Whether to show the bar.

    Returns:
        Distances and examples, each of which the network has been seen to misclassify.

    Raises:
        ValueError: if a logit of an attacked image is not finite.
    """
    forward = inference_forward(model)

    @tf.function(
        input_signature=[
            tf.TensorSpec((batch_size, *x.shape[1:]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int64),
            tf.TensorSpec((batch_size,), tf.int64),
        ],
        autograph=False,
    )
    def attacked(images: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with cached_for_inference(model):
            found = attack.nearest(forward, images, labels, fold_in(tf.constant([attack.seed, 0], tf.int64), rows))
            return _seen_misclassified(attack, forward, images, labels, found.x_adv)

    distance, x_adv = np.full(len(x), np.inf, np.float32), x.copy()
    with Progress(title, len(x), progress) as bar:
        for padded, count in padded_batches(np.arange(len(x)), batch_size):
            examples, away, wrong, finite = (each.numpy() for each in attacked(x[padded], y[padded], padded))
            check_finite(finite, f"images attacked by {type(attack).__name__}")
            rows = padded[:count]
            distance[rows] = np.where(wrong, away, np.inf)[:count]
            x_adv[rows] = np.where(wrong.reshape(-1, *[1] * (x.ndim - 1)), examples, x[padded])[:count]
            bar.advance(count)
    return NearestExamples(distance, x_adv)


def _seen_misclassified(
    attack: MinimumNormAttack, forward: Forward, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns examples, their distances, whether the network is wrong about them, and whether logits are finite.

    The nearest example lies on the boundary, where another order of sums decides. So examples that a plain forward pass
    classifies correctly are moved a little further.
    """
    logits = forward(x_adv)
    finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    examples, wrong = x_adv, tf.argmax(logits, axis=-1) != y
    for share in BEYOND:
        further = pixel_range(x + (1 + share) * (x_adv - x))
        examples = fast_where(wrong, examples, further)
        wrong |= tf.argmax(forward(further), axis=-1) != y
    return examples, attack.length(examples, x), wrong, finite


def distances_as_results(distance: np.ndarray, norm: str) -> dict[str, Any]:
    """Returns `median_distance`, `distances` and `points` of a results file for distances `(images,)` in a norm."""
    finite = distance[np.isfinite(distance)]
    last = float(np.quantile(finite, 0.99)) if len(finite) and finite.max() > 0 else 1.0
    radii = np.linspace(0, last, CURVE_POINTS + 1)
    radii = np.unique(np.round(radii)) if norm == "L0" else radii  # which counts
    median = float(np.median(distance))
    return {
        "median_distance": median if np.isfinite(median) else None,
        "distances": [float(each) if np.isfinite(each) else None for each in distance],
        "points": [{"epsilon": float(each), "robust_accuracy": float((distance > each).mean())} for each in radii],
    }
