"""Adversarial examples for one network, tested on another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.evaluation.clean import check_finite, clean_answers
from tf_robust_sparse.evaluation.examples import check_image_shape
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.survivors import attack_survivors
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.layers.noise import fold_in


class Transfer(NamedTuple):
    """The result of a transfer attack.

    Attributes:
        standing: `(images,)`, bool: which images the target classifies correctly under every restart.
        history: Share of all images that are robust after each restart.
        source_clean_accuracy: Accuracy of the source on the clean images, in [0, 1].
        source_fooled: Share of the attacked images on which the source was wrong after at least one restart, in [0, 1].
            If it is small, the attack failed on its source, and the result says little about the target.
    """

    standing: np.ndarray
    history: list[float]
    source_clean_accuracy: float
    source_fooled: float


def transfer_attack(
    target: Callable[..., Any],
    source: Callable[..., Any],
    attack: GradientAttack,
    x: np.ndarray,
    y: np.ndarray,
    correct: np.ndarray,
    batch_size: int,
    progress: bool = True,
) -> Transfer:
    """Attacks `source`, and tests `target` on the examples: a black-box attack without gradients of the target.

    Each restart attacks the images that the target still classifies correctly. Starting points are those of
    `evaluate_robustness`, so with the target as its own source this is the white-box attack.

    Args:
        target: Keras model, or any callable from images to logits.
        source: Another network for the same images and classes.
        attack: Untargeted attack.
        x: `(images, ...)`, float32, in `[0, 1]`.
        y: `(images,)`, int64.
        correct: `(images,)`, bool: which images the target classifies correctly.
        batch_size: Number of images attacked at a time.
        progress: Whether to show a bar on standard error.

    Returns:
        Which images the target still classifies correctly, and how good the attack was on its source.

    Raises:
        ValueError: if the source takes other images or has too few classes, or a logit is not finite.

    Reference: [Papernot et al., 2016](https://arxiv.org/abs/1605.07277).
    """
    x = checked_images(x).astype(np.float32, copy=False)
    y = checked_labels(y, len(x))
    check_image_shape(source, x)
    source_forward, target_forward = inference_forward(source), inference_forward(target)
    clean = clean_answers(source_forward, x, y, batch_size)
    single = type(attack).from_config({**attack.get_config(), "restarts": 1})
    fooled = np.zeros(len(x), bool)

    @tf.function(
        input_signature=[
            tf.TensorSpec((batch_size, *x.shape[1:]), tf.float32),
            tf.TensorSpec((batch_size,), tf.int64),
            tf.TensorSpec((batch_size,), tf.int64),
            tf.TensorSpec((), tf.int64),
        ],
        autograph=False,
    )
    def step(
        images: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor, restart: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        seeds = fold_in(fold_in(attack.seed, restart), rows)
        with cached_for_inference(source):
            x_adv = single(source_forward, images, labels, seed=seeds)
            source_answers = tf.argmax(source_forward(x_adv), axis=-1)
        with cached_for_inference(target):
            logits = target_forward(x_adv)
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=-1)
        return tf.argmax(logits, axis=-1) == labels, finite, source_answers != labels

    def survives(rows: np.ndarray, restart: int) -> np.ndarray:
        stands, finite, source_wrong = (value.numpy() for value in step(x[rows], y[rows], rows, restart))
        check_finite(finite, "images attacked on another network")
        fooled[rows[source_wrong]] = True
        return stands

    with Progress(f"transfer of {type(attack).__name__}", len(x) * attack.restarts, progress) as bar:
        standing, history = attack_survivors(correct, attack.restarts, batch_size, survives, bar)
    attacked = int(correct.sum())
    return Transfer(standing, history, clean.accuracy, float(fooled[correct].mean()) if attacked else 0.0)
