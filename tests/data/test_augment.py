import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tf_robust_sparse.data import augment
from tf_robust_sparse.data.augment import random_crop_and_flip, random_shift_and_flip

# Positions are float32 of about 30, so an interpolation weight is off by about 4e-6.
WEIGHT_ROUNDING = 2e-5


def pictures(n=16, height=12, width=20, channels=3):
    return np.random.default_rng(0).random((n, height, width, channels), dtype=np.float32)


def shifted_by_scipy(images, uniform, flip, max_shift=0.1):
    result = []
    for image, u in zip(images, uniform.astype(np.float64), strict=True):
        if flip and u[2] < 0.5:
            image = image[:, ::-1]
        shift = (2 * u[:2] - 1) * max_shift * np.array(image.shape[:2])
        result.append(scipy.ndimage.shift(image, [*shift, 0], order=1, mode="nearest"))
    return np.stack(result)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("max_shift", [0.1, 0.4, 0.0])
@pytest.mark.parametrize("shape", [(12, 20, 3), (32, 32, 1)])
def test_shift_agrees_with_scipy(shape, max_shift, flip):
    images = pictures(16, *shape)
    uniform = augment.uniforms(16, 1).numpy()
    moved = augment.shift_and_flip(images, uniform, flip=flip, max_shift=max_shift)
    expected = shifted_by_scipy(images, uniform, flip, max_shift)
    np.testing.assert_allclose(moved, expected, atol=WEIGHT_ROUNDING)
    assert moved.dtype == tf.float32 and moved.shape == images.shape


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [4, 1, 0])
def test_crop_agrees_with_numpy(padding, flip):
    images = pictures()
    uniform = augment.uniforms(16, 2).numpy()
    moved = augment.crop_and_flip(images, uniform, flip=flip, padding=padding).numpy()
    for image, u, result in zip(images, uniform, moved, strict=True):
        if flip and u[2] < 0.5:
            image = image[:, ::-1]
        padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
        top, left = np.floor(u[:2] * (2 * padding + 1)).astype(int)
        np.testing.assert_array_equal(result, padded[top : top + 12, left : left + 20])


@pytest.mark.parametrize("function", [random_shift_and_flip, random_crop_and_flip])
def test_random_functions_follow_the_seed(function):
    images = pictures()
    first = function(images, 3)
    np.testing.assert_array_equal(first, function(images, 3))
    np.testing.assert_array_equal(first, function(images, [3, 0]))
    assert not np.array_equal(first, function(images, 4))
    assert not np.array_equal(first, function(images, [3, 1]))
    tf.random.set_seed(99)
    np.testing.assert_array_equal(first, function(images, 3))
    compiled = tf.function(
        function, input_signature=[tf.TensorSpec([None, 12, 20, 3]), tf.TensorSpec([], tf.int64)], autograph=False
    )
    np.testing.assert_allclose(compiled(images, tf.constant(3, tf.int64)), first, atol=WEIGHT_ROUNDING)


def test_draws_cover_their_range():
    # Three numbers for each of 4,000 images; the bounds are five standard deviations wide.
    uniform = augment.uniforms(4000, 7).numpy()
    np.testing.assert_allclose(uniform.mean(axis=0), 0.5, atol=5 * 12**-0.5 / 4000**0.5)
    starts = np.bincount(np.floor(uniform[:, 0] * 9).astype(int), minlength=9)
    assert len(starts) == 9 and abs(starts - 4000 / 9).max() < 5 * (4000 / 9) ** 0.5
    assert abs(np.corrcoef(uniform.T) - np.eye(3)).max() < 5 / 4000**0.5


def test_pixels_stay_in_range():
    moved = random_shift_and_flip(np.ones((64, 32, 32, 1), np.float32), 0)
    assert moved.numpy().max() <= 1 and moved.numpy().min() > 1 - WEIGHT_ROUNDING


@pytest.mark.parametrize("max_shift", [-0.1, 1.0, 3.2])
def test_refuses_a_shift_in_pixels(max_shift):
    with pytest.raises(ValueError, match=r"fraction of the image, in \[0, 1\).*Received"):
        random_shift_and_flip(pictures(), 0, max_shift=max_shift)


@pytest.mark.parametrize("padding", [-1, 0.5])
def test_refuses_padding(padding):
    with pytest.raises(ValueError, match="`padding` must be a number of pixels"):
        random_crop_and_flip(pictures(), 0, padding=padding)
