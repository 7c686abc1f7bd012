"""Corruptions of CIFAR-10-C that add weather to an image: snow and fog.

Arguments and results are those of `corruption_pixels`. Frost is missing, because it overlays photographs that have no
free license.
"""

import numpy as np

from tf_robust_sparse.data.corruption_blurs import blurred_by_motion, enlarged

_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


def snow(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Whitens the image and adds falling flakes, plus the same flakes rotated by 180 degrees."""
    mean, deviation, zoom, threshold, radius, sigma, clear = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    for_flakes, for_angles = rng.spawn(2)
    flakes = enlarged(mean + deviation * for_flakes.standard_normal((*x.shape[:3], 1)), zoom)
    flakes = (np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255).astype(np.uint8)
    flakes = blurred_by_motion(flakes, radius, sigma, for_angles.uniform(-135, -45, len(x))) / 255
    x = (x / 255).astype(np.float32)
    gray = (x @ _GRAY)[..., None] if x.shape[-1] == 3 else x
    whitened = np.float32(clear) * x + np.float32(1 - clear) * np.maximum(x, gray * np.float32(1.5) + np.float32(0.5))
    return whitened + flakes + np.rot90(flakes, 2, axes=(1, 2))


def fog(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Adds a cloud, and darkens the result so that the brightest pixel stays in range."""
    density, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    height, width = x.shape[1:3]
    x = x / 255
    highest = x.max(axis=(1, 2, 3), keepdims=True)
    clouds = _clouds(len(x), max(height, width), decay, rng)[:, :height, :width, None]
    return (x + density * clouds) * highest / (highest + density)


def _clouds(number: int, size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Returns height maps of the diamond-square algorithm, `(number, size', size')` in [0, 1].

    `size'` is the smallest power of two from 32 on that is at least `size`. The map wraps around at its borders. Each
    level of detail is `decay` times as rough as the one before.
    """
    side = max(32, 1 << (size - 1).bit_length())
    # All numbers of an image are drawn together, so that they do not depend on the number of images.
    drawn = rng.uniform(-1, 1, (number, side * side - 1))
    heights = np.zeros((number, side, side))
    step, roughness, used = side, 100.0, 0

    def middle(corners: np.ndarray) -> np.ndarray:
        """Returns the mean of four corners, given their sum, plus a random part."""
        nonlocal used
        part = drawn[:, used : used + corners[0].size].reshape(corners.shape)
        used += corners[0].size
        return corners / 4 + roughness**2 * part

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        rows = corners + np.roll(corners, -1, 1)
        heights[:, half::step, half::step] = middle(rows + np.roll(rows, -1, 2))
        centers = heights[:, half::step, half::step]
        across = centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 2)
        heights[:, ::step, half::step] = middle(across)
        down = centers + np.roll(centers, 1, 2) + corners + np.roll(corners, -1, 1)
        heights[:, half::step, ::step] = middle(down)
        step, roughness = half, roughness / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)
