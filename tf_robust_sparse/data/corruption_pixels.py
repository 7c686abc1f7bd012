"""Corruptions of CIFAR-10-C that do not move pixels: noise, brightness, contrast, blocks, JPEG.

Each function takes images `(n, height, width, channels)`, uint8, a severity counted from 0 and a generator. It returns
bytes, or floats on the scale of [0, 1] that `corrupt` clips and truncates. The order of operations and the number types
are those of the code that made the files, because truncation turns a difference in the last bit into a whole level.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def gaussian_noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Adds normal noise to every value."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[level]
    return x / 255 + deviation * rng.standard_normal(x.shape)


def shot_noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Replaces pixels by counts of photons; the severity sets the mean count of a white pixel."""
    photons = (500, 250, 100, 75, 50)[level]
    return rng.poisson(x / 255 * photons) / photons


def impulse_noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Sets random values to black or white, with equal probability."""
    probability = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    uniform = rng.random(x.shape)
    return np.where(uniform < probability / 2, 0, np.where(uniform < probability, 255, x)).astype(np.uint8)


def brightness(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Increases the value in HSV, and keeps hue and saturation."""
    increase = (0.05, 0.1, 0.15, 0.2, 0.3)[level]
    x = x / 255
    value = x.max(axis=-1, keepdims=True)
    # Ratio of each channel to the largest one: exactly 1 there, so that the largest grows by whole levels.
    share = 1 - (value - x) / np.where(value == 0, 1, value)
    return np.minimum(value + increase, 1) * share


def contrast(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Shrinks values toward the mean of their channel."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[level]
    x = x / 255
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * factor + mean


def pixelate(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Shrinks each image with a box filter, rounds to bytes, and repeats pixels to restore its size."""
    factor = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    sizes = [(size, max(int(size * factor), 1)) for size in x.shape[1:3]]
    rows, columns = (_boxes(size, small) for size, small in sizes)
    shrunk = _round_half_up(np.moveaxis(x, -1, 1) @ columns.T)  # Pillow rounds after each axis
    shrunk = np.moveaxis(_round_half_up(rows @ shrunk), 1, -1).astype(np.uint8)
    nearest_row, nearest_column = ((2 * np.arange(size) + 1) * small // (2 * size) for size, small in sizes)
    return shrunk[:, nearest_row][:, :, nearest_column]


def jpeg_compression(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Compresses and decompresses each image."""
    quality = (80, 65, 58, 50, 40)[level]
    with tf.device("/CPU:0"):
        decoded = [
            tf.io.decode_jpeg(tf.io.encode_jpeg(image, quality=quality), dct_method="INTEGER_ACCURATE").numpy()
            for image in x
        ]
    return np.stack(decoded)


def _boxes(size: int, small: int) -> np.ndarray:
    """Returns the matrix `(small, size)` along one axis whose outputs average the pixels with centers in their box."""
    # The ends of the boxes are rounded in whole numbers, so that rounding errors move no center to another box.
    ends = (2 * np.arange(small + 1) * size + small) // (2 * small)
    pixels = np.arange(size)
    inside = ((ends[:-1, None] <= pixels) & (pixels < ends[1:, None])).astype(np.float64)
    return inside / inside.sum(axis=1, keepdims=True)


def _round_half_up(x: np.ndarray) -> np.ndarray:
    return np.floor(x + 0.5 + 1e-9)  # in binary, a half is often slightly less
