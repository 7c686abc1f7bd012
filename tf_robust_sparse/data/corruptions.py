"""Common corruptions of images, computed or read from the files of CIFAR-10-C.

Reference: [Hendrycks & Dietterich, 2019](https://arxiv.org/abs/1903.12261).
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tf_robust_sparse.data import corruption_blurs, corruption_pixels, corruption_weather, files
from tf_robust_sparse.data.readers import tfds
from tf_robust_sparse.data.source import check_examples
from tf_robust_sparse.paths import user_path

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
_COMPUTED: dict[str, corruption_pixels.Corruption] = {
    "gaussian_noise": corruption_pixels.gaussian_noise,
    "shot_noise": corruption_pixels.shot_noise,
    "impulse_noise": corruption_pixels.impulse_noise,
    "defocus_blur": corruption_blurs.defocus_blur,
    "glass_blur": corruption_blurs.glass_blur,
    "motion_blur": corruption_blurs.motion_blur,
    "zoom_blur": corruption_blurs.zoom_blur,
    "snow": corruption_weather.snow,
    "fog": corruption_weather.fog,
    "brightness": corruption_pixels.brightness,
    "contrast": corruption_pixels.contrast,
    "elastic_transform": corruption_blurs.elastic_transform,
    "pixelate": corruption_pixels.pixelate,
    "jpeg_compression": corruption_pixels.jpeg_compression,
}
COMPUTED_CORRUPTIONS = tuple(_COMPUTED)

_PREPARED = "cifar10_corrupted"
_PREPARED_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}
_TOGETHER = 500  # images per pass, because clouds and offsets take many times the memory of images

Examples = Iterator[tuple[str, int, np.ndarray, np.ndarray]]


def corrupt(x: npt.ArrayLike, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupts images with the formulas, the parameters and the output format of CIFAR-10-C.

    As in its files, the result is bytes. Values computed in floats are truncated, not rounded, which makes images half
    a level darker on average. The parameters were chosen for 32x32 images and are not rescaled for other sizes.

    Args:
        x: `(n, height, width, channels)` with 1 or 3 channels, uint8, or floats in [0, 1], which are rounded to bytes
            first.
        name: One of `COMPUTED_CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: Seed of the noise, at least 0. Each corruption and severity draws its own; the first images of a longer
            array get the same noise as alone.

    Returns:
        Images of the same shape, float32, whole multiples of 1/255 in [0, 1].

    Raises:
        ValueError: if the images are malformed, or the corruption or severity is unknown.

    Reference: `ImageNet-C/create_c/make_cifar_c.py` of
    [hendrycks/robustness](https://github.com/hendrycks/robustness), which made the files.
    """
    check_computed([name])
    check_severities([severity])
    given = np.asarray(x)
    checked, _ = check_examples(given, np.zeros(len(given) if given.ndim else 0, np.int64), where="images to corrupt")
    images = np.asarray(checked)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images to corrupt: expected 1 or 3 channels. Received: shape {images.shape}")
    if images.dtype != np.uint8:
        images = np.rint(images * 255).astype(np.uint8)
    corrupted = np.empty(images.shape, np.float32)
    for start in range(0, len(images), _TOGETHER):
        rng = np.random.default_rng([seed, CORRUPTIONS.index(name), severity, start])
        found = _COMPUTED[name](images[start : start + _TOGETHER], severity - 1, rng)
        if found.dtype != np.uint8:
            found = (np.clip(found, 0, 1) * 255).astype(np.uint8)
        corrupted[start : start + _TOGETHER] = found / np.float32(255)
    return corrupted


def read_corruptions(
    directory: str | os.PathLike,
    names: Iterable[str] | None = None,
    severities: Iterable[int] | None = None,
) -> Examples:
    """Reads corrupted images from files, one corruption and severity at a time.

    The directory holds the official `<name>.npy`, `(5 * n, height, width, channels)` uint8 with the images of severity
    `s` in rows `[(s - 1) * n, s * n)`, and `labels.npy` for all rows (for CIFAR-10-C, n = 10000); or, in
    `cifar10_corrupted/`, the files that TensorFlow Datasets has prepared. Nothing is downloaded.

    Args:
        directory: Folder of the files, or the data folder of TensorFlow Datasets.
        names: Some of `CORRUPTIONS`; `None` for all fifteen.
        severities: Some of 1 to 5; `None` for all.

    Yields:
        `(name, severity, x, y)` in the order of `names`, then of `severities`: images `(n, height, width, channels)`,
        float32 in [0, 1], and labels `(n,)`, int64.

    Raises:
        FileNotFoundError: if a file is missing; raised before anything is read.
        ValueError: if a name or a severity is unknown; later, if a file is damaged or has other contents.
    """
    directory = user_path(directory)
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
    """Returns the `CORRUPTIONS` that `read_corruptions` finds in a directory at all given severities."""
    directory = user_path(directory)
    if _has_official_files(directory):
        return tuple(name for name in CORRUPTIONS if (directory / f"{name}.npy").is_file())
    severities = check_severities(severities)
    return tuple(name for name in CORRUPTIONS if all(_prepared(directory, name, level) for level in severities))


def check_names(names: Iterable[str] | None) -> list[str]:
    """Returns each corruption once, all for `None`; raises a `ValueError` for an unknown one."""
    given = list(CORRUPTIONS) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in given if name not in CORRUPTIONS]
    if unknown or not given:
        raise ValueError(f"`names` must be a list of {', '.join(CORRUPTIONS)}, at least one. Received: names={names!r}")
    return given


def check_computed(names: Iterable[str]) -> None:
    """Raises a `ValueError` for a corruption that is not one of `COMPUTED_CORRUPTIONS`."""
    for name in names:
        if name == "frost":
            raise ValueError(
                "frost cannot be computed, because it overlays photographs that have no free license; pass the folder "
                "of CIFAR-10-C with its frost.npy, or leave frost out. Received: 'frost' without files"
            )
        if name not in COMPUTED_CORRUPTIONS:
            raise ValueError(f"computed corruptions are {', '.join(COMPUTED_CORRUPTIONS)}. Received: {name!r}")


def check_severities(severities: Iterable[int] | None) -> list[int]:
    """Returns each severity once, all for `None`; raises a `ValueError` for one that is not 1 to 5."""
    given = list(SEVERITIES) if severities is None else list(dict.fromkeys(severities))
    if not given or any(severity not in SEVERITIES for severity in given):
        raise ValueError(f"severities must be integers from 1 to 5, at least one. Received: {given}")
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
    """Returns the array of a `.npy` file, mapped from disk; never unpickles."""
    files.check_regular(path)
    expected = "a complete .npy file of plain numbers"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as a Python expression
        reason = str(error).partition("\n")[0] or type(error).__name__
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
    """Returns the newest version of one corruption and severity that TensorFlow Datasets has prepared."""
    return tfds.newest_version(directory / _PREPARED / f"{_PREPARED_NAMES.get(name, name)}_{severity}")


def _as_floats(images: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = check_examples(images, labels, where=where)
    return images / np.float32(255), labels
