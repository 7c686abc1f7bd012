"""Random augmentations of a batch of images, with separate random numbers for each image.

An augmentation is a plain function of images and of three uniform numbers per image. The same image with the same
numbers thus gives the same result in every batch and on every replica.
"""

from typing import Any

import numpy as np
import tensorflow as tf

NUM_UNIFORMS = 3  # vertical, horizontal, flip


def random_shift_and_flip(images: tf.Tensor, seed: Any, flip: bool = True, max_shift: float = 0.1) -> tf.Tensor:
    """Shifts each image by a random fraction of a pixel grid and mirrors half of them.

    The two shifts are independent and uniform in `[-max_shift, max_shift]` of the height and of the width. Pixels are
    interpolated bilinearly; beyond the border the nearest pixel is repeated.

    Args:
        images: `(batch, height, width, channels)`, floats in [0, 1].
        seed: One or two integers; the same seed gives the same result.
        flip: Whether to mirror left and right with probability 1/2.
        max_shift: Largest shift as a fraction of the image, in [0, 1).

    Returns:
        Images of the same shape, float32 in [0, 1].

    Reference: Ozdenizci & Legenstein, ICML 2021: their augmentation of CIFAR and SVHN.
    """
    return shift_and_flip(images, uniforms(tf.shape(images)[0], seed), flip=flip, max_shift=max_shift)


def random_crop_and_flip(images: tf.Tensor, seed: Any, flip: bool = True, padding: int = 4) -> tf.Tensor:
    """Pads each image with zeros, crops it to its size at a random place, and mirrors half of them.

    Args:
        images: `(batch, height, width, channels)`, floats in [0, 1].
        seed: One or two integers; the same seed gives the same result.
        flip: Whether to mirror left and right with probability 1/2.
        padding: Number of zero pixels on each side; the crop moves by -padding..padding whole pixels along each axis.

    Returns:
        Images of the same shape, float32 in [0, 1].

    Reference: [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), the augmentation of HYDRA.
    """
    return crop_and_flip(images, uniforms(tf.shape(images)[0], seed), flip=flip, padding=padding)


def uniforms(num_images: Any, seed: Any, number: int = NUM_UNIFORMS) -> tf.Tensor:
    """Returns uniform numbers `(num_images, number)`, float32 in [0, 1); equal seeds give equal numbers."""
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int64)
    if seed.shape.rank == 0:
        seed = tf.stack([seed, tf.zeros_like(seed)])
    return tf.random.stateless_uniform([num_images, number], seed, alg="philox")


def shift_and_flip(images: tf.Tensor, uniform: tf.Tensor, flip: bool = True, max_shift: float = 0.1) -> tf.Tensor:
    """`random_shift_and_flip` with given random numbers.

    Args:
        images: `(batch, height, width, channels)`, floats in [0, 1].
        uniform: `(batch, 3)` float32 in [0, 1): an image moves down by `(2 u - 1) * max_shift * height`, where u
            is the first number, and right by the second in the same way. If the third is below 1/2, it
            is mirrored before.
        flip: Whether to mirror at all.
        max_shift: Largest shift as a fraction of the image, in [0, 1).
    """
    if not 0 <= max_shift < 1:
        raise ValueError(
            f"`max_shift` must be a fraction of the image, in [0, 1); pass 0.1 for 3.2 of 32 pixels. "
            f"Received: max_shift={max_shift}"
        )
    images = tf.cast(images, tf.float32)
    size = tf.cast(tf.shape(images)[1:3], tf.float32)
    shift = (2.0 * uniform[:, :2] - 1.0) * max_shift * size
    moved = _resample(images, shift, uniform[:, 2], flip, interpolation="BILINEAR", fill="NEAREST")
    return tf.clip_by_value(moved, 0.0, 1.0)


def crop_and_flip(images: tf.Tensor, uniform: tf.Tensor, flip: bool = True, padding: int = 4) -> tf.Tensor:
    """`random_crop_and_flip` with given random numbers.

    Args:
        images: `(batch, height, width, channels)`, floats in [0, 1].
        uniform: `(batch, 3)` float32 in [0, 1): the crop of the padded image starts in row
            `floor(u * (2 * padding + 1))`, where u is the first number, and in the column of the second. The image is
            first mirrored if the third is below 1/2.
        flip: Whether to mirror at all.
        padding: Number of zero pixels on each side, at least 0.
    """
    if not (isinstance(padding, (int, np.integer)) and padding >= 0):
        raise ValueError(f"`padding` must be a number of pixels, 0, 1, 2, ... Received: padding={padding!r}")
    start = tf.floor(uniform[:, :2] * (2 * padding + 1))
    images = tf.cast(images, tf.float32)
    moved = _resample(images, padding - start, uniform[:, 2], flip, interpolation="NEAREST", fill="CONSTANT")
    return tf.clip_by_value(moved, 0.0, 1.0)


def _resample(
    images: tf.Tensor, shift: tf.Tensor, mirror: tf.Tensor, flip: bool, *, interpolation: str, fill: str
) -> tf.Tensor:
    """Mirrors and moves every image in one operation: output pixel (x, y) is read from (a * x + b, y + c)."""
    down, right = shift[:, 0], shift[:, 1]
    zero, one = tf.zeros_like(down), tf.ones_like(down)
    a, b = one, -right
    if flip:
        last = tf.cast(tf.shape(images)[2] - 1, tf.float32)
        mirrored = mirror < 0.5
        a = tf.where(mirrored, -one, a)
        b = tf.where(mirrored, last + right, b)
    # ImageProjectiveTransformV3 takes the rows (a0, a1, a2), (b0, b1, b2) and (c0, c1) of the inverse map.
    transforms = tf.stack([a, zero, b, zero, one, -down, zero, zero], axis=1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode=fill,
    )
    return tf.ensure_shape(moved, images.shape)
