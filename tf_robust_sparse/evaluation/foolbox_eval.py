"""Robust accuracy under Foolbox's projected gradient attack, as a check of ours."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack, LinfPGD, cross_entropy
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.clean import clean_answers
from tf_robust_sparse.evaluation.examples import check_image_shape, collect_examples, fixed_batch_size
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.robust_accuracy import masked_gradients
from tf_robust_sparse.evaluation.survivors import attack_survivors
from tf_robust_sparse.layers.forward import Forward, inference_forward


def foolbox_linf_pgd(
    model: Callable[..., Any],
    dataset: Any,
    epsilon: float = 8 / 255,
    num_steps: int = 50,
    restarts: int = 10,
    step_size: float | None = None,
    seed: int = 0,
    max_examples: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures robust accuracy with `foolbox.attacks.LinfPGD`.

    The attack starts at a uniform point of the ball, climbs the cross entropy by sign steps, and returns the last
    iterate. An image counts against the model if it is misclassified without an attack or after any restart. Broken
    images are not attacked again.

    Foolbox uses TensorFlow's global generator. So this function calls `tf.random.set_seed(seed + restart)` before each
    restart, which reseeds the whole program.

    Args:
        model: Keras model, or any callable from images to logits, such as `load_saved_model(path)`.
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or a tuple of arrays; images `(batch, ...)`, floating, in
            `[0, 1]`; labels `(batch,)`, integers.
        epsilon: Radius in pixels of `[0, 1]`, in `[0, 1]`.
        num_steps: Number of steps, at least 0.
        restarts: Number of restarts, at least 1.
        step_size: Length of a step in pixels of `[0, 1]`; `None` for `2.5 * epsilon / num_steps`.
        seed: Integer.
        max_examples: Number of images to use, from the first on; `None` for all.
        batch_size: Number of images attacked at a time; `None` for the batch size of the data set.
        progress: Whether to show a bar on standard error.

    Returns:
        Plain values, ready for a results file: `attack`, `epsilon`, `step_size`, `num_steps`, `restarts`, `seed`,
        `images`, `clean_accuracy`, `clean_errors`, `robust_accuracy`, `robust_accuracy_after_restart`, `seconds`,
        `images_per_second`, `flags` and `flag_names`
        (reasons to doubt the numbers). Accuracies are in `[0, 1]`.

    Raises:
        ValueError: if an argument, the data or the logits are malformed.

    Reference: [Rauber et al., 2017](https://arxiv.org/abs/1707.04131); the protocol is from
    [Ozdenizci and Legenstein, 2021](https://proceedings.mlr.press/v139/ozdenizci21a.html).
    """
    checked = LinfPGD(epsilon, step_size, num_steps, restarts=restarts, seed=seed)
    begin = time.perf_counter()
    forward = inference_forward(model)
    x, y, data_batch_size = collect_examples(dataset, max_examples)
    check_image_shape(model, x)
    batch_size = fixed_batch_size(model, batch_size or data_batch_size, len(x))
    clean = clean_answers(forward, x, y, batch_size)
    flags = clean.flags + masked_gradients(model, x, y, clean.correct, batch_size, "Foolbox", cross_entropy)
    survives = foolbox_survives(forward, checked, x, y, batch_size)
    title = f"foolbox LinfPGD-{num_steps}x{restarts}"
    with Progress(title, len(x) * restarts, progress) as bar:
        _, history = attack_survivors(clean.correct, restarts, batch_size, survives, bar)
    seconds = time.perf_counter() - begin
    return {
        "attack": "foolbox LinfPGD",
        "epsilon": checked.epsilon,
        "step_size": checked.step_size,
        "num_steps": num_steps,
        "restarts": restarts,
        "seed": seed,
        "images": len(x),
        "clean_accuracy": clean.accuracy,
        "clean_errors": int((~clean.correct).sum()),
        "robust_accuracy": history[-1],
        "robust_accuracy_after_restart": history,
        "seconds": seconds,
        "images_per_second": len(x) / seconds,
        **safety.as_results(flags),
    }


def foolbox_survives(
    forward: Forward, settings: GradientAttack, x: np.ndarray, y: np.ndarray, batch_size: int, deepfool: bool = False
) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns a function from rows of the data set and a restart to whether these images survive an attack of Foolbox.

    Args:
        forward: Function from images to float32 logits.
        settings: Our attack with the norm (`"linf"` or `"l2"`), radius, length and number of steps, and seed.
        x: `(images, ...)`, float32, in `[0, 1]`.
        y: `(images,)`, int64.
        batch_size: Number of rows in each call.
        deepfool: Whether to use DeepFool, which takes no random start, instead of PGD.

    Returns:
        `survives(rows, restart)`, from `(batch_size,)` indices to `(batch_size,)` bool.
    """
    # Importing Foolbox imports GitPython, which fails without a git executable unless this is set.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    compiled = tf.function(
        forward, input_signature=[tf.TensorSpec((batch_size, *x.shape[1:]), tf.float32)], autograph=False
    )
    device = "/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0"
    network = foolbox.models.TensorFlowModel(compiled, bounds=(0, 1), device=device)
    linf = settings.norm == "linf"
    attack: foolbox.attacks.base.Attack
    if deepfool:
        attack = (foolbox.attacks.LinfDeepFoolAttack if linf else foolbox.attacks.L2DeepFoolAttack)()
    else:
        pgd = foolbox.attacks.LinfPGD if linf else foolbox.attacks.L2PGD
        attack = pgd(abs_stepsize=settings.step_size, steps=settings.num_steps, random_start=settings.random_start)
    last_restart = -1

    def survives(rows: np.ndarray, restart: int) -> np.ndarray:
        nonlocal last_restart
        if restart != last_restart:
            tf.random.set_seed(settings.seed + restart)
            last_restart = restart
        criterion = foolbox.criteria.Misclassification(tf.constant(y[rows]))
        _, _, broken = attack(network, tf.constant(x[rows]), criterion, epsilons=settings.epsilon)
        return ~broken.numpy()

    return survives
