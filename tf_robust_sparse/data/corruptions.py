"""Common corruptions of images: computed, and read from the files of CIFAR-10-C.

Reference: [Hendrycks & Dietterich, 2019](https://arxiv.org/abs/1903.12261).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_robust_sparse.data import files
from tf_robust_sparse.data.readers import tfds
from tf_robust_sparse.data.source import check_examples

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)

_PREPARED = "cifar10_corrupted"
_PREPARED_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}

Examples = Iterator[tuple[str, int, np.ndarray, np.ndarray]]


def corrupt(x: npt.ArrayLike, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupts images by plain arithmetic, with the parameters of CIFAR-10-C.

    The parameters were chosen for 32x32 images and are not rescaled for other sizes. Pixels are not rounded to 256
    levels, as those in the files are, except before JPEG compression.

    Args:
        x: `(n, height, width, channels)` with 1 or 3 channels, uint8, or floats in [0, 1].
        name: One of `COMPUTED_CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: Seed of the noise, at least 0. Each corruption and severity draws its own; the first images of a longer
            array get the same noise as alone.

    Returns:
        Images of the same shape, float32 in [0, 1].

    Raises:
        ValueError: if the images are malformed, or the corruption or its severity is not one of these.
    """
    check_computed([name])
    check_severities([severity])
    x = np.asarray(x)
    x, _ = check_examples(x, np.zeros(len(x) if x.ndim else 0, np.int64), where="images to corrupt")
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"images to corrupt: expected 1 or 3 channels. Received: shape {x.shape}")
    if x.dtype == np.uint8:
        x = x / np.float32(255)
    rng = np.random.default_rng([seed, CORRUPTIONS.index(name), severity])
    return np.ascontiguousarray(np.clip(_COMPUTED[name](x, severity - 1, rng), 0, 1), np.float32)


def read_corruptions(
    directory: str | os.PathLike,
    names: Iterable[str] | None = None,
    severities: Iterable[int] | None = None,
) -> Examples:
    """Reads corrupted images from files, one corruption and severity at a time.

    The directory holds the official `<name>.npy`, `(5 * n, height, width, channels)` uint8 with the images of severity
    `s` in rows `[(s - 1) * n, s * n)`, and `labels.npy` for all rows (for CIFAR-10-C, n = 10000); or, in
    `cifar10_corrupted/`, what TensorFlow Datasets has prepared. Nothing is downloaded.

    Args:
        directory: Folder of the files, or the data folder of TensorFlow Datasets.
        names: Some of `CORRUPTIONS`; `None` for all fifteen.
        severities: Some of 1 to 5; `None` for all.

    Yields:
        `(name, severity, x, y)` in the order of `names`, then of `severities`: images `(n, height, width, channels)`,
        float32 in [0, 1], and labels `(n,)`, int64.

    Raises:
        FileNotFoundError: if a file is missing; before anything is read.
        ValueError: if a name or a severity is unknown; later, if a file is damaged or holds something else.
    """
    directory = Path(directory).expanduser()
    names, severities = check_names(names), check_severities(severities)
    missing = [name for name in names if name not in find_corruptions(directory, severities)]
    if missing:
        raise FileNotFoundError(
            f"{directory}: expected labels.npy and {', '.join(f'{name}.npy' for name in missing)} of CIFAR-10-C, or "
            f"{_PREPARED}/ prepared by TensorFlow Datasets; check the path, or name only the corruptions that are "
            "there. No such files"
        )
    if _has_official_files(directory):
        return _read_official(directory, names, severities)
    return _read_prepared(directory, names, severities)


def find_corruptions(directory: str | os.PathLike, severities: Iterable[int] | None = None) -> tuple[str, ...]:
    """Returns those of `CORRUPTIONS` that `read_corruptions` finds in a directory at all of these severities."""
    directory = Path(directory).expanduser()
    if _has_official_files(directory):
        return tuple(name for name in CORRUPTIONS if (directory / f"{name}.npy").is_file())
    severities = check_severities(severities)
    return tuple(name for name in CORRUPTIONS if all(_prepared(directory, name, level) for level in severities))


def check_names(names: Iterable[str] | None) -> list[str]:
    """Returns the corruptions once each, all for `None`, or raises a `ValueError` for an unknown one."""
    given = list(CORRUPTIONS) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in given if name not in CORRUPTIONS]
    if unknown or not given:
        raise ValueError(
            f"`names` are corruptions, at least one of {', '.join(CORRUPTIONS)}; pass a list. Received: names={names!r}"
        )
    return given


def check_computed(names: Iterable[str]) -> None:
    """Raises a `ValueError` for a corruption that is not one of `COMPUTED_CORRUPTIONS`."""
    rest = [name for name in names if name not in COMPUTED_CORRUPTIONS]
    if rest:
        raise ValueError(
            f"computed are {', '.join(COMPUTED_CORRUPTIONS)}; the others are read from the files of CIFAR-10-C. "
            f"Received: {', '.join(map(repr, rest))}"
        )


def check_severities(severities: Iterable[int] | None) -> list[int]:
    """Returns the severities once each, all for `None`, or raises a `ValueError` for one that is not 1 to 5."""
    given = list(SEVERITIES) if severities is None else list(dict.fromkeys(severities))
    if not given or any(severity not in SEVERITIES for severity in given):
        raise ValueError(f"severities are integers from 1 to 5, at least one. Received: {given}")
    return [int(severity) for severity in given]


def _has_official_files(directory: Path) -> bool:
    return (directory / "labels.npy").is_file()


def _read_official(directory: Path, names: list[str], severities: list[int]) -> Examples:
    labels_path = directory / "labels.npy"
    labels = _load(labels_path)
    rows = len(labels) if labels.ndim == 1 else 0
    if rows == 0 or rows % 5 or labels.dtype.kind not in "iu":
        expected = "integer labels of shape (5 * n,)"
        raise files.damaged(labels_path, expected, f"shape {labels.shape}, dtype {labels.dtype}")
    for name in names:
        path = directory / f"{name}.npy"
        images = _load(path)
        if images.ndim != 4 or len(images) != rows or images.dtype != np.uint8:
            expected = f"uint8 images of shape ({rows}, height, width, channels), as many as there are labels"
            raise files.damaged(path, expected, f"shape {images.shape}, dtype {images.dtype}")
        for severity in severities:
            part = slice((severity - 1) * rows // 5, severity * rows // 5)
            yield name, severity, *_as_floats(images[part], labels[part], str(path))


def _load(path: Path) -> np.ndarray:
    """An array of a `.npy` file, left on disk; never unpickles."""
    expected = "a complete .npy file of plain numbers"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise files.damaged(path, expected, f"{path.stat().st_size} bytes: {reason}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise files.damaged(path, expected, "a .npz archive")
    return array


def _read_prepared(directory: Path, names: list[str], severities: list[int]) -> Examples:
    for name in names:
        for severity in severities:
            folder = _prepared(directory, name, severity)
            assert folder is not None, "found before"
            yield name, severity, *_as_floats(*tfds.read_split(folder, "test"), str(folder))


def _prepared(directory: Path, name: str, severity: int) -> Path | None:
    """The newest version of one corruption and severity that TensorFlow Datasets has prepared."""
    return tfds.newest_version(directory / _PREPARED / f"{_PREPARED_NAMES.get(name, name)}_{severity}")


def _as_floats(images: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = check_examples(images, labels, where=where)
    return images / np.float32(255), labels


# Each takes images (n, height, width, channels), float32 in [0, 1], and a severity counted from 0.


def _gaussian_noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[level]
    return x + np.float32(deviation) * rng.standard_normal(x.shape, dtype=np.float32)


def _shot_noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    photons = (500, 250, 100, 75, 50)[level]  # at a white pixel
    return rng.poisson(x * photons).astype(np.float32) / photons


def _impulse_noise(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Sets values to 0 or 1, each with half of the probability."""
    probability = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    uniform = rng.random(x.shape, dtype=np.float32)
    return np.where(uniform < probability / 2, 0, np.where(uniform < probability, 1, x))


def _defocus_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Averages over a disk that is itself smoothed by a 3x3 Gaussian."""
    from scipy import ndimage

    radius, smoothing = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    offsets = np.arange(-3, 4)  # the largest disk is 3x3, and 5x5 once smoothed
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    gaussian = np.exp(-(np.arange(-1, 2) ** 2) / (2 * smoothing**2))
    kernel = ndimage.convolve(disk, np.outer(gaussian, gaussian), mode="constant")
    return ndimage.convolve(x, (kernel / kernel.sum())[None, :, :, None], mode="mirror")


def _zoom_blur(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Averages the image, and once more the image, with enlargements of it by 1 %, 2 % and so on."""
    end = (1.06, 1.11, 1.16, 1.21, 1.26)[level]
    factors = np.arange(1, end, 0.01)  # its rounding decides whether the end is one of them
    height, width = x.shape[1:3]
    planes = np.moveaxis(x, -1, 1)
    total = planes.copy()
    for factor in factors:
        total += _enlargement(height, factor) @ (planes @ _enlargement(width, factor).T)
    return np.moveaxis(total, 1, -1) / np.float32(len(factors) + 1)


def _enlargement(size: int, factor: float) -> np.ndarray:
    """Matrix `(size, size)` along one axis: interpolates linearly between the middle pixels, to fill the axis."""
    crop = int(np.ceil(size / factor))
    large = round(crop * factor)
    positions = (size - crop) // 2 + ((large - size) // 2 + np.arange(size)) * (crop - 1) / max(large - 1, 1)
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(size)), 0).astype(np.float32)


def _brightness(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Adds to the value in HSV; at fixed hue and saturation this scales the channels alike."""
    increase = np.float32((0.05, 0.1, 0.15, 0.2, 0.3)[level])
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + increase, 1)
    black = value == 0  # has no hue, becomes grey
    return np.where(black, brighter, x * (brighter / np.where(black, 1, value)))


def _contrast(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    factor = np.float32((0.75, 0.5, 0.4, 0.3, 0.15)[level])
    mean = x.mean(axis=(1, 2), keepdims=True)
    return mean + factor * (x - mean)


def _pixelate(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Shrinks each image with a box filter, and repeats pixels to get back to its size."""
    factor = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    sizes = [(size, max(int(size * factor), 1)) for size in x.shape[1:3]]
    rows, columns = (_boxes(size, small) for size, small in sizes)
    shrunk = np.moveaxis(rows @ (np.moveaxis(x, -1, 1) @ columns.T), 1, -1)
    nearest_row, nearest_column = ((2 * np.arange(size) + 1) * small // (2 * size) for size, small in sizes)
    return shrunk[:, nearest_row][:, :, nearest_column]


def _boxes(size: int, small: int) -> np.ndarray:
    """Matrix `(small, size)` along one axis: each output is the mean of the pixels whose centres lie in its box."""
    # The rounded ends of the boxes, in whole numbers: no centre may change its box by rounding.
    ends = (2 * np.arange(small + 1) * size + small) // (2 * small)
    pixels = np.arange(size)
    inside = ((ends[:-1, None] <= pixels) & (pixels < ends[1:, None])).astype(np.float32)
    return inside / inside.sum(axis=1, keepdims=True)


def _jpeg_compression(x: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    quality = (80, 65, 58, 50, 40)[level]
    images = np.rint(x * 255).astype(np.uint8)
    with tf.device("/CPU:0"):
        decoded = [
            tf.io.decode_jpeg(tf.io.encode_jpeg(image, quality=quality), dct_method="INTEGER_ACCURATE").numpy()
            for image in images
        ]
    return np.stack(decoded) / np.float32(255)


_COMPUTED: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "zoom_blur": _zoom_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
COMPUTED_CORRUPTIONS = tuple(_COMPUTED)
