"""Corruptions of CIFAR-10-C that mix pixels with their neighbors: defocus, glass, motion and zoom blur, elastic.

Arguments and results are those of `corruption_pixels`. The files were made with OpenCV, ImageMagick and scikit-image;
these are the same formulas in NumPy and SciPy. Three roundings may differ: those of ImageMagick's sums at exact halves,
of OpenCV's tables of interpolation weights, and of float32 sums in another order. Each may change single values by one
level.
"""

from collections.abc import Callable

import numpy as np

Border = Callable[[np.ndarray, int], np.ndarray]


def defocus_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Averages over a disk that is itself smoothed by a 3x3 Gaussian."""
    from scipy import ndimage

    radius, smoothing = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    offsets = np.arange(-3, 4)  # the largest disk is 3x3, and 5x5 once smoothed
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    gaussian = np.exp(-(np.arange(-1, 2) ** 2) / (2 * smoothing**2))
    kernel = ndimage.convolve(disk, np.outer(gaussian, gaussian), mode="constant")
    return ndimage.convolve(x / 255, (kernel / kernel.sum())[None, :, :, None], mode="mirror")


def glass_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Blurs, shuffles pixels with their neighbors, and blurs again.

    The code that made the files was meant to swap two pixels, but its NumPy views share memory, so the first pixel
    takes the value of the second, which keeps it. This is reproduced here.
    """
    sigma, _, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[level]
    height, width = x.shape[1:3]
    x = (_gaussian(x / 255, sigma) * 255).astype(np.uint8)
    places = [(row, column) for row in range(height - 1, 1, -1) for column in range(width - 1, 1, -1)] * rounds
    steps = rng.integers(-1, 1, size=(len(x), len(places), 2), dtype=np.int8)  # the upper end is excluded
    images = np.arange(len(x))
    for (row, column), (across, down) in zip(places, steps.transpose(1, 2, 0), strict=True):
        x[:, row, column] = x[images, row + down, column + across]
    return _gaussian(x / 255, sigma)


def motion_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Averages along a line of a random direction within 45 degrees of the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level]
    return blurred_by_motion(x, radius, sigma, rng.uniform(-45, 45, len(x)))


def zoom_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Averages the image, counted twice, with its enlargements by 1 %, 2 % and so on."""
    end = (1.06, 1.11, 1.16, 1.21, 1.26)[level]
    factors = np.arange(1, end, 0.01)  # rounding decides whether this includes the end
    x = (x / 255).astype(np.float32)
    total = np.zeros_like(x)
    for factor in factors:
        total += enlarged(x, factor)
    return (x + total) / np.float32(len(factors) + 1)


def elastic_transform(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Moves the image by an affine map of three random points, then each pixel by a smooth random field."""
    from scipy import ndimage

    height, width = x.shape[1:3]
    size = min(height, width)
    shares = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    strength, sigma, shift = (size * share for share in shares[level])
    # All numbers of an image are drawn together, so that they do not depend on the number of images.
    drawn = rng.uniform(-1, 1, (len(x), 6 + 2 * height * width))
    center, square = np.array([height // 2, width // 2], np.float32), size // 3
    before = center + np.array([[square, square], [square, -square], [-square, -square]], np.float32)
    after = before + (shift * drawn[:, :6]).reshape(-1, 3, 2).astype(np.float32)
    x = _affine((x / 255).astype(np.float32), before, after)
    fields = drawn[:, 6:].reshape(-1, 2, height, width)
    if strength:
        fields = ndimage.gaussian_filter(fields, (0, 0, sigma, sigma), mode="reflect", truncate=3)
    across, down = np.moveaxis((fields * strength).astype(np.float32), 1, 0)
    rows, columns = np.arange(height)[:, None] + down, np.arange(width) + across
    return _sampled(x, rows, columns, _reflect)


def blurred_by_motion(x: np.ndarray, radius: int, sigma: float, degrees: np.ndarray) -> np.ndarray:
    """Averages each pixel with those behind it on a line, like ImageMagick's `MotionBlurImage`.

    Args:
        x: `(n, height, width, channels)`, uint8.
        radius: The line has `2 * radius + 1` pixels, from the averaged one outward.
        sigma: Standard deviation of the weights along the line, in pixels.
        degrees: `(n,)`, direction of the line.

    Returns:
        Images like `x`, rounded to bytes.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.deg2rad(degrees)[:, None]
    right, down = (np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(angle), np.sin(angle)))
    images = np.arange(len(x))[:, None, None]
    total = np.zeros(x.shape)
    for step in np.flatnonzero(weights > 1e-9):  # smaller weights change no rounded value
        rows = np.clip(np.arange(x.shape[1]) + down[:, step, None], 0, x.shape[1] - 1)
        columns = np.clip(np.arange(x.shape[2]) + right[:, step, None], 0, x.shape[2] - 1)
        total += weights[step] * x[images, rows[:, :, None], columns[:, None, :]]
    return np.floor(total + 0.5).clip(0, 255).astype(np.uint8)


def enlarged(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the middle of images `(n, height, width, channels)` to their size, by linear interpolation."""
    rows, columns = (_enlargement(size, factor).astype(x.dtype) for size in x.shape[1:3])
    return np.moveaxis(rows @ (np.moveaxis(x, -1, 1) @ columns.T), 1, -1)


def _enlargement(size: int, factor: float) -> np.ndarray:
    """Returns the matrix `(size, size)` that enlarges the middle pixels of one axis by linear interpolation."""
    crop = int(np.ceil(size / factor))
    large = round(crop * factor)
    positions = (size - crop) // 2 + ((large - size) // 2 + np.arange(size)) * (crop - 1) / max(large - 1, 1)
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(size)), 0)


def _gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4)


def _affine(x: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Maps images so that the points `before`, `(3, 2)` as (x, y), move to `after`, `(n, 3, 2)`."""
    ones = np.ones((*after.shape[:2], 1))
    # The source of each pixel is given by the inverse map, computed from the points as rows.
    matrices = np.linalg.solve(np.concatenate([after, ones], -1), np.broadcast_to(before, after.shape).astype(float))
    columns, rows = np.meshgrid(np.arange(x.shape[2]), np.arange(x.shape[1]))
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1)
    sources = pixels @ matrices[:, None]
    sources = np.floor(32 * sources + 0.5) / 32  # OpenCV's grid of positions
    return _sampled(x, sources[..., 1], sources[..., 0], _mirror)


def _sampled(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, inside: Border) -> np.ndarray:
    """Interpolates images linearly at positions `(n, height, width)`; `inside` maps positions beyond the border."""
    images = np.arange(len(x))[:, None, None]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = ((rows - top)[..., None].astype(x.dtype), (columns - left)[..., None].astype(x.dtype))
    total = np.zeros_like(x)
    for row, share in ((top, 1 - down), (top + 1, down)):
        for column, other in ((left, 1 - right), (left + 1, right)):
            total += share * other * x[images, inside(row, x.shape[1]), inside(column, x.shape[2])]
    return total


def _mirror(places: np.ndarray, size: int) -> np.ndarray:
    """Mirrors at the border pixel, which is not repeated: c b | a b c."""
    period = max(2 * size - 2, 1)
    places = places % period
    return np.minimum(places, period - places)


def _reflect(places: np.ndarray, size: int) -> np.ndarray:
    """Mirrors at the edge, so that the border pixel is repeated: b a | a b c."""
    places = places % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)
