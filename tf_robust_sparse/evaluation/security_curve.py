"""Robust accuracy over a list of radii."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.clean import clean_answers
from tf_robust_sparse.evaluation.examples import check_image_shape, collect_examples, fixed_batch_size
from tf_robust_sparse.evaluation.robust_accuracy import masked_gradients, robust_mask
from tf_robust_sparse.layers.forward import inference_forward


def security_curve(
    model: Callable[..., Any],
    dataset: Any,
    attack: GradientAttack,
    epsilons: Sequence[float],
    max_examples: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the robust accuracy of a model in balls of growing radius.

    A ball contains all smaller ones, so an image broken at one radius counts as broken at every larger one and is not
    attacked there. The curve therefore never rises, and may be a little below single measurements. The length of a step
    grows with the radius.

    Args:
        model: Keras model, or any callable from images to logits, such as `load_saved_model(path)`.
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or a tuple of arrays; images `(batch, ...)`, floating, in
            `[0, 1]`; labels `(batch,)`, integers.
        attack: Untargeted attack with a radius above 0; radius and step size are scaled.
        epsilons: Radii, above 0, in any order; each is used once.
        max_examples: Number of images to use, from the first on; `None` for all.
        batch_size: Number of images attacked at a time; `None` for the batch size of the data set.
        progress: Whether to show bars on standard error.

    Returns:
        Plain values, ready for a results file: `attack`, `norm`, `num_steps`, `restarts`, `images`, `seconds`, `flags`
        and `flag_names` (reasons to doubt the numbers), and `points`, a list of `epsilon` and `robust_accuracy` (in
        `[0, 1]`) by increasing radius; the first has radius 0 and the clean accuracy.

    Raises:
        ValueError: if a radius, the data or the logits are malformed.
    """
    if not attack.epsilon > 0 or attack.targeted:
        raise ValueError(f"`attack` must be untargeted, with a radius above 0. Received: attack={attack!r}")
    radii = sorted(set(epsilons))
    if not radii or radii[0] <= 0:
        raise ValueError(f"`epsilons` must be radii above 0, at least one. Received: epsilons={list(epsilons)!r}")
    scaled = [
        type(attack).from_config(
            {**attack.get_config(), "epsilon": radius, "step_size": attack.step_size * radius / attack.epsilon}
        )
        for radius in radii
    ]
    begin = time.perf_counter()
    x, y, data_batch_size = collect_examples(dataset, max_examples)
    check_image_shape(model, x)
    size = fixed_batch_size(model, batch_size or data_batch_size, len(x))
    clean = clean_answers(inference_forward(model), x, y, size)
    standing = clean.correct
    flags = clean.flags + masked_gradients(model, x, y, standing, size, "PGD")
    points = [{"epsilon": 0.0, "robust_accuracy": clean.accuracy}]
    for each in scaled:
        title = f"{type(attack).__name__} epsilon {each.epsilon:.4g}"
        standing, _ = robust_mask(model, each, x, y, standing, size, title, progress)
        points.append({"epsilon": each.epsilon, "robust_accuracy": float(standing.mean())})
    return {
        "attack": type(attack).__name__,
        "norm": attack.norm,
        "num_steps": attack.num_steps,
        "restarts": attack.restarts,
        "images": len(x),
        "points": points,
        "seconds": time.perf_counter() - begin,
        **safety.as_results(flags),
    }
