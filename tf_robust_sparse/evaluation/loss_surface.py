"""The loss around images, along the direction an attack would take and a random one."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.evaluation.examples import check_image_shape
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.layers.noise import fold_in


class LossSurface(NamedTuple):
    """The result of `loss_surface`.

    Attributes:
        offsets: `(points,)`, float32, from `-epsilon` to `epsilon`: offsets along a direction.
        losses: `(images, points, points)`, float32, cross entropies; the first axis of points is along the gradient's
            sign, the second along the random direction.
    """

    offsets: np.ndarray
    losses: np.ndarray


def loss_surface(
    network: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epsilon: float,
    points: int = 21,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> LossSurface:
    """Computes the cross entropy at `clip(x + a * sign(gradient) + b * r, 0, 1)`, `r` random of +1 and -1.

    A surface that falls off sharply near the image, or is rough where others are smooth, is a sign of gradients that
    mislead an attack.

    Args:
        network: A Keras model from `(batch, ...)` images to logits.
        x: `(images, ...)`, floating, in [0, 1].
        y: `(images,)`, integer labels.
        epsilon: Largest offset, in pixels of [0, 1], positive.
        points: Number of offsets along each direction; odd, so that 0 is among them.
        seed: Seed of the random directions, one for each image.
        batch_size: Number of images at a time.
        progress: Whether to show a bar on standard error.

    Raises:
        ValueError: if there is no image, or a value is out of its range.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), figure 4.
    """
    x = checked_images(x)
    if not 0 < epsilon <= 1:
        raise ValueError(f"`epsilon` is an offset in pixels of [0, 1], above 0. Received: epsilon={epsilon!r}")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"`points` must be odd and at least 3. Received: points={points!r}")
    check_image_shape(network, x)
    forward = inference_forward(network)
    y = checked_labels(y, len(x), forward(tf.constant(x[:1], tf.float32)).shape[-1])
    offsets = np.linspace(-epsilon, epsilon, points, dtype=np.float32)

    @tf.function(reduce_retracing=True, autograph=False)
    def surface(x: tf.Tensor, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        with cached_for_inference(network):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                loss = cross_entropy(y, forward(x))
            steepest = tf.sign(tape.gradient(loss, x))
            seeds = fold_in(seed, rows)
            flips = tf.map_fn(
                lambda each: tf.random.stateless_uniform(x.shape[1:], each, 0, 2, tf.int32),
                seeds,
                fn_output_signature=tf.int32,
            )
            random = tf.cast(2 * flips - 1, x.dtype)
            steps = tf.reshape(tf.stack(tf.meshgrid(offsets, offsets, indexing="ij"), -1), (-1, 2))
            losses = tf.map_fn(
                lambda step: cross_entropy(
                    y, forward(tf.clip_by_value(x + step[0] * steepest + step[1] * random, 0.0, 1.0))
                ),
                steps,
                parallel_iterations=1,
            )
        return tf.reshape(tf.transpose(losses), (-1, points, points))

    found = []
    with Progress("Loss surface", len(x), progress) as bar:
        for start in range(0, len(x), batch_size):
            rows = np.arange(start, min(start + batch_size, len(x)), dtype=np.int64)
            images, labels = tf.constant(x[rows], tf.float32), tf.constant(y[rows], tf.int64)
            found.append(surface(images, labels, tf.constant(rows)).numpy())
            bar.advance(len(rows))
    return LossSurface(offsets, np.concatenate(found))
