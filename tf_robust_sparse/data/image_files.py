"""Images that do not fit in memory: encoded files that are decoded and cropped when a batch needs them."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data import files
from tf_robust_sparse.paths import user_path

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp"}
_MOST_PIXELS = 10**8  # a small file can claim any number; the largest image of ImageNet has 6e7
_SHORTER_SIDE = 256 / 224  # of a scaled image before its center is cut out, in units of the crop
_AREA, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
NUM_UNIFORMS = 2 * _TRIES + 3  # area and ratio of each try, row, column, flip


class ImageFiles:
    """Image files with the interface of an array `(n, size, size, 3)` uint8; only file names are in memory.

    Slices and index arrays return other `ImageFiles`. `numpy.asarray` decodes all images: the shorter side is scaled to
    256/224 of `size` and the center is cut out, as usual for testing on ImageNet.

    Args:
        paths: Names of the files: JPEG, PNG or BMP.
        size: Height and width of the images.

    Raises:
        ValueError: if `size` is not a positive integer.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[str] | np.ndarray, size: int = 224) -> None:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"`size` must be the height and width of the images in pixels. Received: size={size!r}")
        self.paths = np.asarray(paths, dtype=object)
        self.size = int(size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(n, size, size, 3)`."""
        return len(self.paths), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: Any) -> "ImageFiles":
        if isinstance(which, (int, np.integer)):
            raise TypeError("take a slice or an array of indices of image files, and numpy.asarray of that")
        return ImageFiles(self.paths[which], self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        images = []
        for path in self.paths:
            decode(path, 3)  # the error of decode names the file
            images.append(center_crop(tf.constant(path), self.size).numpy())
        found = np.stack(images) if images else np.zeros(self.shape, np.uint8)
        return found if dtype is None else found.astype(dtype)


def decode(path: str | os.PathLike, channels: int) -> tf.Tensor:
    """Decodes an image file eagerly.

    Args:
        path: A JPEG, PNG or BMP file.
        channels: 3 for color, 1 for gray; the image is converted.

    Returns:
        `(height, width, channels)` uint8.

    Raises:
        ValueError: if the file is damaged, no image, or claims more than 1e8 pixels; names it.
    """
    path = user_path(path)
    data = files.read_bytes(path)
    try:
        height, width = _dimensions(data)
        if height * width > _MOST_PIXELS:
            raise ValueError(f"{height} x {width} pixels, more than {_MOST_PIXELS}")
        return tf.io.decode_image(data, channels=channels, expand_animations=False)
    except (tf.errors.OpError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else "bytes that do not decode"
        received = f"{len(data)} bytes: {reason}"
        raise files.damaged(path, f"a complete {path.suffix} image", received) from error


def _dimensions(data: bytes) -> tuple[int, int]:
    """Returns the height and width in the header, before memory is allocated for the image."""
    if data.startswith(b"\x89PNG"):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(b"BM"):
        width, height = (int.from_bytes(data[place : place + 4], "little", signed=True) for place in (18, 22))
        return abs(height), abs(width)
    if data.startswith(b"GIF"):
        return int.from_bytes(data[8:10], "little"), int.from_bytes(data[6:8], "little")
    shape = tf.io.extract_jpeg_shape(data).numpy()
    return int(shape[0]), int(shape[1])


def center_crop(path: tf.Tensor, size: int) -> tf.Tensor:
    """Decodes a file, scales its shorter side to 256/224 of `size` and cuts out the center.

    Args:
        path: Scalar string.
        size: Height and width of the result.

    Returns:
        `(size, size, 3)` uint8.
    """
    data = tf.io.read_file(path)
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = round(size * _SHORTER_SIDE) / tf.reduce_min(shape)
    scaled = tf.maximum(tf.cast(tf.round(shape * scale), tf.int32), size)
    image = tf.image.resize(image, scaled, antialias=True)
    begin = (scaled - size) // 2
    image = image[begin[0] : begin[0] + size, begin[1] : begin[1] + size]
    return tf.ensure_shape(_as_bytes(image), (size, size, 3))


def random_resized_crop(path: tf.Tensor, uniform: tf.Tensor, size: int, flip: bool = True) -> tf.Tensor:
    """Decodes a random part of a file, scales it and mirrors half of the images.

    The part has 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3. Up to ten draws are tried; if none fits, the
    largest center with an allowed ratio is taken.

    Args:
        path: Scalar string.
        uniform: `(NUM_UNIFORMS,)` float32 in [0, 1).
        size: Height and width of the result.
        flip: Whether to mirror at all.

    Returns:
        `(size, size, 3)` float32 in [0, 1].

    Reference: [Szegedy et al., 2015](https://arxiv.org/abs/1409.4842), section 6.
    """
    data = tf.io.read_file(path)
    is_jpeg = tf.io.is_jpeg(data)
    decoded = tf.cond(
        is_jpeg,
        lambda: tf.zeros((0, 0, 3), tf.uint8),  # only the part of a JPEG is decoded
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    shape = tf.cond(is_jpeg, lambda: tf.image.extract_jpeg_shape(data), lambda: tf.shape(decoded))[:2]
    top, left, height, width = box(shape, uniform)
    part = tf.cond(
        is_jpeg,
        lambda: tf.image.decode_and_crop_jpeg(data, tf.stack([top, left, height, width]), channels=3),
        lambda: decoded[top : top + height, left : left + width],
    )
    image = tf.image.resize(part, (size, size), antialias=True) / 255.0
    if flip:
        image = tf.cond(uniform[-1] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.ensure_shape(tf.clip_by_value(image, 0.0, 1.0), (size, size, 3))


def box(shape: tf.Tensor, uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns top, left, height and width, int32, of the random part of an image of `shape` `(height, width)`."""
    sides = tf.cast(shape, tf.float32)
    draws = tf.reshape(uniform[: 2 * _TRIES], (_TRIES, 2))
    area = sides[0] * sides[1] * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[:, 0])
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = tf.exp(low + (high - low) * draws[:, 1])  # width over height
    parts = tf.round(tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)], 1))
    fits = tf.reduce_all((parts >= 1) & (parts <= sides), axis=1)
    # Otherwise the largest part of an allowed ratio.
    whole = tf.clip_by_value(sides[1] / sides[0], *_RATIO)
    largest = tf.round(tf.stack([tf.minimum(sides[0], sides[1] / whole), tf.minimum(sides[1], sides[0] * whole)]))
    any_fits = tf.reduce_any(fits)
    part = tf.where(any_fits, parts[tf.argmax(tf.cast(fits, tf.int32))], tf.maximum(largest, 1.0))
    place = tf.floor(uniform[-3:-1] * (sides - part + 1))
    begin = tf.where(any_fits, tf.minimum(place, sides - part), tf.floor((sides - part) / 2))
    begin, part = tf.cast(begin, tf.int32), tf.cast(part, tf.int32)
    return begin[0], begin[1], part[0], part[1]


def _as_bytes(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
