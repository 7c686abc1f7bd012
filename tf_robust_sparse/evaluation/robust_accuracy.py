"""Clean and robust accuracy under the attacks of this package."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.attacks.gradient_attack import input_gradient
from tf_robust_sparse.attacks.losses import log_odds
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.clean import check_finite, clean_answers
from tf_robust_sparse.evaluation.examples import check_image_shape, collect_examples, fixed_batch_size
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.survivors import attack_survivors, padded_batches
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.layers.noise import fold_in

Attacks = GradientAttack | Sequence[GradientAttack] | Mapping[str, GradientAttack]


def robust_accuracy(
    network: Callable[..., Any],
    dataset: Any,
    attack: GradientAttack | None = None,
    restarts: int | None = None,
    max_examples: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> float:
    """Returns the share of images that are classified correctly under every restart of an attack.

    ```python
    attack = trs.attacks.LinfPGD(epsilon=8 / 255, num_steps=50, restarts=10)
    trs.evaluation.robust_accuracy(network, (x, y), attack)
    ```

    Args:
        network: Keras model, or any callable from images to logits.
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or a tuple of arrays; images in `[0, 1]`, integer labels.
        attack: Untargeted attack; `None` for the clean accuracy.
        restarts: Number of restarts; `None` for the setting of the attack.
        max_examples: Number of images to use, from the first on; `None` for all.
        batch_size: Number of images attacked at a time; `None` for the batch size of the data set.
        progress: Whether to show a bar on standard error.

    Returns:
        Accuracy in `[0, 1]`.

    Raises:
        ValueError: if the data, the logits or the attack are malformed.
    """
    if restarts is not None and attack is not None:
        attack = type(attack).from_config({**attack.get_config(), "restarts": restarts})
    attacks = [] if attack is None else [attack]
    return evaluate_robustness(network, dataset, attacks, max_examples, batch_size, progress)["robust_accuracy"]


def evaluate_robustness(
    model: Callable[..., Any],
    dataset: Any,
    attacks: Attacks,
    max_examples: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the clean accuracy of a model, and its accuracy under each of several attacks.

    An image counts against the model if it is misclassified without an attack or after any restart. Each restart
    attacks only the images that are not broken yet. The starting points of an image depend on the seed of the attack,
    the restart and the index of the image in the data set, but neither on the batch size nor on the other images. So
    more restarts never give a higher accuracy.

    Args:
        model: Keras model, or any callable from images to logits, such as `load_saved_model(path)`.
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or a tuple of arrays; images `(batch, ...)`, floating, in
            `[0, 1]`; labels `(batch,)`, integers.
        attacks: Untargeted attack, a sequence of attacks, or a mapping from names to attacks. Without a mapping the
            name consists of class, steps and restarts, such as `LinfPGD-50x10`.
        max_examples: Number of images to use, from the first on; `None` for all.
        batch_size: Number of images attacked at a time; `None` for the batch size of the data set.
        progress: Whether to show a bar on standard error.

    Returns:
        Plain values, ready for a results file: `images`, `clean_accuracy`, `clean_errors`, `robust_accuracy` (under all
        attacks together), `seconds`, `images_per_second`, `flags` and `flag_names` (reasons for
        doubt), and `attacks`, a dictionary from the name of each attack to its settings with
        `robust_accuracy`, `robust_accuracy_after_restart`, `seconds` and `images_per_second`. Accuracies are in
        `[0, 1]`; seconds include tracing; `images_per_second` is the number of images in the data set divided by the
        seconds.

    Raises:
        ValueError: if the data set is empty, an image or a label out of range, a logit not finite, or an attack
            targeted, or if the model takes other images.
    """
    named = _named(attacks)
    begin = time.perf_counter()
    forward = inference_forward(model)
    x, y, data_batch_size = collect_examples(dataset, max_examples)
    check_image_shape(model, x)
    batch_size = fixed_batch_size(model, batch_size or data_batch_size, len(x))
    clean = clean_answers(forward, x, y, batch_size)
    standing_under_all = clean.correct
    flags = clean.flags
    if named:
        flags = flags + masked_gradients(model, x, y, clean.correct, batch_size, "The attack")
    results = {}
    for name, attack in named.items():
        attack_begin = time.perf_counter()
        standing, history = robust_mask(model, attack, x, y, clean.correct, batch_size, name, progress)
        standing_under_all = standing_under_all & standing
        results[name] = {
            **attack.describe(),
            "robust_accuracy": history[-1],
            "robust_accuracy_after_restart": history,
            **_speed(len(x), attack_begin),
        }
    return {
        "images": len(x),
        "clean_accuracy": clean.accuracy,
        "clean_errors": int((~clean.correct).sum()),
        "robust_accuracy": float(standing_under_all.mean()),
        **_speed(len(x), begin),
        **safety.as_results(flags),
        "attacks": results,
    }


def masked_gradients(
    model: Callable[..., Any],
    x: np.ndarray,
    y: np.ndarray,
    correct: np.ndarray,
    batch_size: int,
    attack: str,
    loss_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = log_odds,
) -> list[safety.Flag]:
    """Flags images whose gradient is exactly zero, because an attack that follows gradients cannot break them.

    Args:
        model: Keras model, or any callable from images to logits.
        x: `(images, ...)`, float32, in `[0, 1]`.
        y: `(images,)`, int64.
        correct: `(images,)`, bool: which images are attacked; at most a thousand of them are checked.
        batch_size: Number of images in one call.
        attack: Name of the attack, for the sentence.
        loss_fn: The loss that the attack climbs.
    """
    rows = np.flatnonzero(correct)[:1000]
    count = int(without_gradient(model, x[rows], y[rows], batch_size, loss_fn).sum())
    return safety.zero_gradients(attack, count, len(rows))


def without_gradient(
    model: Callable[..., Any],
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    loss_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = log_odds,
) -> np.ndarray:
    """Returns which images have a gradient of exactly zero, `(images,)`, bool; see `masked_gradients`."""
    forward = inference_forward(model)

    # Compiled, because eager mode would compute the gradients of the kernels too.
    @tf.function(
        input_signature=[
            tf.TensorSpec((batch_size, *x.shape[1:]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int64),
        ],
        autograph=False,
    )
    def nowhere(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with cached_for_inference(model):
            gradient = input_gradient(forward, images, labels, loss_fn)
        return tf.reduce_all(tf.equal(gradient, 0), axis=list(range(1, images.shape.rank)))

    batches = padded_batches(np.arange(len(x)), batch_size)
    found = [nowhere(x[padded], y[padded]).numpy()[:number] for padded, number in batches]
    return np.concatenate(found) if found else np.zeros(0, bool)


def robust_mask(
    model: Callable[..., Any],
    attack: GradientAttack,
    x: np.ndarray,
    y: np.ndarray,
    correct: np.ndarray,
    batch_size: int,
    title: str,
    progress: bool,
) -> tuple[np.ndarray, list[float]]:
    """Returns which images withstand every restart of one attack.

    Args:
        model: Keras model, or any callable from images to logits.
        attack: Untargeted attack.
        x: `(images, ...)`, float32, in `[0, 1]`.
        y: `(images,)`, int64.
        correct: `(images,)`, bool: which images to attack.
        batch_size: Number of images attacked at a time.
        title: Title of the progress bar.
        progress: Whether to show the progress bar.

    Returns:
        `(images,)` bool; and the share of all images that are robust after each restart.

    Raises:
        ValueError: if a logit of an attacked image is not finite.
    """
    survives = _compiled_attack(model, attack, x, y, batch_size)
    with Progress(title, len(x) * attack.restarts, progress) as bar:
        return attack_survivors(correct, attack.restarts, batch_size, survives, bar)


def _compiled_attack(
    model: Callable[..., Any], attack: GradientAttack, x: np.ndarray, y: np.ndarray, batch_size: int
) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns a function from rows of the data set and a restart to whether these images survive; traced once."""
    forward = inference_forward(model)
    # The caller loops over restarts, and each image has its own seed.
    single = type(attack).from_config({**attack.get_config(), "restarts": 1})

    @tf.function(
        input_signature=[
            tf.TensorSpec((batch_size, *x.shape[1:]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int64),
            tf.TensorSpec((batch_size,), tf.int64),
            tf.TensorSpec((), tf.int64),
        ],
        autograph=False,
    )
    def step(images: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor, restart: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seeds = fold_in(fold_in(attack.seed, restart), rows)
        with cached_for_inference(model):
            logits = forward(single(forward, images, labels, seed=seeds))
        return tf.argmax(logits, axis=-1) == labels, tf.reduce_all(tf.math.is_finite(logits), axis=-1)

    def survives(rows: np.ndarray, restart: int) -> np.ndarray:
        correct, finite = step(x[rows], y[rows], rows, restart)
        check_finite(finite.numpy(), f"images attacked by {type(attack).__name__}")
        return correct.numpy()

    return survives


def _named(attacks: Attacks) -> dict[str, GradientAttack]:
    """Returns the attacks by name; raises unless all are untargeted attacks."""
    if isinstance(attacks, GradientAttack):
        attacks = [attacks]
    if isinstance(attacks, Mapping):
        named = dict(attacks)
    else:
        named = {}
        for attack in attacks:
            name = f"{type(attack).__name__}-{getattr(attack, 'num_steps', 0)}x{getattr(attack, 'restarts', 0)}"
            named[name if name not in named else f"{name}-{len(named) + 1}"] = attack
    for attack in named.values():
        if not isinstance(attack, GradientAttack) or attack.targeted:
            raise ValueError(
                "`attacks` must be untargeted attack objects; pass, for example, attacks.LinfPGD(epsilon=8 / 255, "
                f"num_steps=50, restarts=10). Received: attack={attack!r}"
            )
    return named


def _speed(images: int, begin: float) -> dict[str, float]:
    """Returns the seconds since `begin` on the performance counter, and images per second."""
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "images_per_second": images / seconds}
