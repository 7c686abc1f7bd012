"""A comparison of our attacks with Foolbox, image by image."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.evaluation.foolbox_eval import foolbox_survives
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.survivors import attack_survivors
from tf_robust_sparse.layers.forward import inference_forward


def foolbox_check(
    model: Callable[..., Any],
    attack: GradientAttack,
    x: np.ndarray,
    y: np.ndarray,
    correct: np.ndarray,
    standing: np.ndarray,
    batch_size: int,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Repeats an attack with Foolbox, and compares image by image.

    Foolbox runs PGD with the radius, steps and restarts of `attack`, and DeepFool in the same norm once. Two correct
    implementations draw different starting points, so a few images near the boundary may differ. DeepFool stops at the
    closest adversarial example that it finds, so it is expected to break fewer images.

    Args:
        model: Keras model, or any callable from images to logits.
        attack: Our attack, of norm `"linf"` or `"l2"`.
        x: `(images, ...)`, float32, in `[0, 1]`.
        y: `(images,)`, int64.
        correct: `(images,)`, bool: which clean images are classified correctly.
        standing: `(images,)`, bool: which images withstand our attack.
        batch_size: Number of images attacked at a time.
        progress: Whether to show bars on standard error.

    Returns:
        For `"pgd"` and `"deepfool"`, plain values: `robust_accuracy` under Foolbox, in `[0, 1]`; `disagreements`, a
        number of images; `broken_by_foolbox_only` and `broken_by_ours_only`, lists of indices of images; `seconds`.

    Raises:
        ValueError: if the attack is of another norm.

    Reference: [Rauber et al., 2017](https://arxiv.org/abs/1707.04131);
    [Moosavi-Dezfooli et al., 2016](https://arxiv.org/abs/1511.04599).
    """
    if attack.norm not in ("linf", "l2"):
        raise ValueError(f"`attack` must have the norm linf or l2. Received: attack={attack!r}")
    forward = inference_forward(model)
    found = {}
    for name, restarts in (("pgd", attack.restarts), ("deepfool", 1)):
        begin = time.perf_counter()
        survives = foolbox_survives(forward, attack, x, y, batch_size, deepfool=name == "deepfool")
        with Progress(f"foolbox {name}", len(x) * restarts, progress) as bar:
            theirs, _ = attack_survivors(correct, restarts, batch_size, survives, bar)
        found[name] = {
            "robust_accuracy": float(theirs.mean()),
            "disagreements": int((theirs != standing).sum()),
            "broken_by_foolbox_only": np.flatnonzero(standing & ~theirs).tolist(),
            "broken_by_ours_only": np.flatnonzero(theirs & ~standing).tolist(),
            "seconds": time.perf_counter() - begin,
        }
    return found
