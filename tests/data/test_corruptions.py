"""The fifteen corruptions of images: range, severity and seeds of all, and each one against what it is defined as."""

import io

import numpy as np
import pytest
from scipy import ndimage

from tests.data import makers
from tf_robust_sparse.data.corruption_blurs import blurred_by_motion
from tf_robust_sparse.data.corruptions import (
    COMPUTED_CORRUPTIONS,
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
)

NOISES = ("gaussian_noise", "shot_noise", "impulse_noise")
RANDOM = (*NOISES, "glass_blur", "motion_blur", "snow", "fog", "elastic_transform")
LEVEL = 1.001 / 255  # one of 256: results are truncated to them


def smooth_images(n=20, size=32, channels=3):
    """Blobs of all brightnesses: plain noise has nothing left after a blur, whatever its severity."""
    x = ndimage.gaussian_filter(np.random.default_rng(0).uniform(size=(n, size, size, channels)), (0, 2, 2, 0))
    x = (x - x.min()) / (x.max() - x.min())
    return np.rint(x * 255).astype(np.float32) / 255


def gray_images(value, shape=(50, 32, 32, 3)):
    return np.full(shape, value, np.float32)


def test_names():
    assert len(set(CORRUPTIONS)) == 15 and set(CORRUPTIONS) - set(COMPUTED_CORRUPTIONS) == {"frost"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COMPUTED_CORRUPTIONS)
def test_range_shape_and_determinism(name, channels):
    x = smooth_images(4, channels=channels)[:, :, :28]
    given = x.copy()
    for severity in SEVERITIES:
        y = corrupt(x, name, severity, seed=3)
        assert y.shape == x.shape and y.dtype == np.float32
        assert y.min() >= 0 and y.max() <= 1
        np.testing.assert_array_equal(y, np.rint(y * 255).astype(np.uint8) / np.float32(255))  # bytes, as in the files
        np.testing.assert_array_equal(y, corrupt(x, name, severity, seed=3))
        # Each image for itself: its neighbors in the array do not matter.
        np.testing.assert_array_equal(y[:2], corrupt(x[:2], name, severity, seed=3))
    np.testing.assert_array_equal(x, given)


@pytest.mark.parametrize("name", COMPUTED_CORRUPTIONS)
def test_more_severe_changes_more(name):
    x = smooth_images()
    distances = [np.mean((corrupt(x, name, severity) - x) ** 2) for severity in SEVERITIES]
    assert distances[0] > 0
    if name not in (
        "glass_blur",
        "motion_blur",
        "snow",
        "elastic_transform",
    ):  # of which each severity has its own kind
        assert (np.diff(distances) > 0).all()


@pytest.mark.parametrize("name", COMPUTED_CORRUPTIONS)
def test_only_what_is_random_depends_on_the_seed(name):
    x = smooth_images(3)
    assert np.array_equal(corrupt(x, name, 2, seed=1), corrupt(x, name, 2, seed=2)) == (name not in RANDOM)


@pytest.mark.parametrize("name", COMPUTED_CORRUPTIONS)
def test_bytes_are_pixels_too(name):
    x = smooth_images(3)
    np.testing.assert_array_equal(corrupt(np.rint(x * 255).astype(np.uint8), name, 4), corrupt(x, name, 4))


@pytest.mark.parametrize("name", NOISES)
def test_severities_have_noise_of_their_own(name):
    x = gray_images(0.5)
    first, second = (corrupt(x, name, severity) - x for severity in (4, 5))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("severity, deviation", zip(SEVERITIES, [0.04, 0.06, 0.08, 0.09, 0.1], strict=True))
def test_gaussian_noise_has_its_deviation(severity, deviation):
    noise = corrupt(gray_images(0.4), "gaussian_noise", severity) - 0.4
    assert noise.std() == pytest.approx(deviation, rel=0.02)
    assert noise.mean() == pytest.approx(-0.5 / 255, abs=0.001)  # truncation takes half a level


@pytest.mark.parametrize("severity, photons", zip(SEVERITIES, [500, 250, 100, 75, 50], strict=True))
def test_shot_noise_counts_photons(severity, photons):
    y = corrupt(gray_images(0.4), "shot_noise", severity)
    assert y.mean() == pytest.approx(0.4 - 0.5 / 255, abs=0.002)
    assert y.var() == pytest.approx(0.4 / photons, rel=0.05)
    counts = np.floor(255 * np.arange(photons + 1) / photons)
    assert set(np.rint(255 * np.unique(y))) <= set(counts)
    assert (corrupt(gray_images(0.0), "shot_noise", severity) == 0).all()


@pytest.mark.parametrize("severity, share", zip(SEVERITIES, [0.01, 0.02, 0.03, 0.05, 0.07], strict=True))
def test_impulse_noise_is_half_black_half_white(severity, share):
    y = corrupt(gray_images(0.4), "impulse_noise", severity)
    assert set(np.unique(y)) == {np.float32(0), np.float32(0.4), np.float32(1)}
    assert (y == 0).mean() == pytest.approx(share / 2, rel=0.1)
    assert (y == 1).mean() == pytest.approx(share / 2, rel=0.1)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate"]
)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_plain_images_stay_as_they_are(name, severity):
    np.testing.assert_allclose(
        corrupt(gray_images(0.3, (3, 32, 32, 3)), name, severity), round(0.3 * 255) / 255, atol=LEVEL
    )


def test_defocus_blur_spreads_a_dot_over_a_disk():
    x = np.zeros((1, 9, 9, 1), np.float32)
    x[0, 4, 4] = 1
    for severity in SEVERITIES:
        y = corrupt(x, "defocus_blur", severity)[0, :, :, 0]
        assert y.sum() == pytest.approx(1, abs=25 * LEVEL)
        np.testing.assert_allclose(y, y.T, atol=LEVEL)
        np.testing.assert_allclose(y, y[::-1], atol=LEVEL)
    box = np.zeros((9, 9))
    box[3:6, 3:6] = 1 / 9
    np.testing.assert_allclose(y, box, atol=LEVEL)  # radius 1.5, hardly smoothed
    # Radius 0.3 is the pixel itself, so only the Gaussian of deviation 0.4 is left.
    tail = np.exp(-1 / (2 * 0.4**2))
    assert corrupt(x, "defocus_blur", 1)[0, 4, 4, 0] * 255 == np.floor(255 * (1 + 2 * tail) ** -2)


def test_defocus_blur_mirrors_about_the_border_pixel():
    x = np.zeros((1, 9, 9, 1), np.float32)
    x[0, 0] = 1
    y = corrupt(x, "defocus_blur", 5)[0, :, 4, 0]
    np.testing.assert_allclose(y[:3], [1 / 3, 1 / 3, 0], atol=LEVEL)


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("severity, end", zip(SEVERITIES, [1.06, 1.11, 1.16, 1.21, 1.26], strict=True))
def test_zoom_blur_is_the_mean_of_enlargements(severity, end, size):
    """Against scipy's zoom, image by image."""
    x = smooth_images(2, size)
    factors = np.arange(1, end, 0.01)
    for image, y in zip(x, corrupt(x, "zoom_blur", severity), strict=True):
        total = image.copy()
        for factor in factors:
            crop = int(np.ceil(size / factor))
            top = (size - crop) // 2
            large = ndimage.zoom(image[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
            top = (len(large) - size) // 2
            total += large[top : top + size, top : top + size]
        np.testing.assert_allclose(y, total / (len(factors) + 1), atol=LEVEL)


@pytest.mark.parametrize("severity, increase", zip(SEVERITIES, [0.05, 0.1, 0.15, 0.2, 0.3], strict=True))
@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_of_gray_images(severity, increase, channels):
    x = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 2, channels))
    expected = np.floor(255 * np.minimum(np.arange(256) / 255 + increase, 1))  # in double precision, as the files
    np.testing.assert_array_equal(np.rint(255 * corrupt(x, "brightness", severity))[0, :, 0, 0], expected)


def test_brightness_keeps_hue_and_saturation():
    import colorsys

    x = smooth_images(1, 8)
    y = corrupt(x, "brightness", 4)
    for before, after in zip(x.reshape(-1, 3), y.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        np.testing.assert_allclose(after, expected, atol=LEVEL)


@pytest.mark.parametrize("severity, factor", zip(SEVERITIES, [0.75, 0.5, 0.4, 0.3, 0.15], strict=True))
def test_contrast_shrinks_about_the_mean_of_each_channel(severity, factor):
    x = smooth_images(3)
    y = corrupt(x, "contrast", severity)
    np.testing.assert_allclose(y.mean(axis=(1, 2)), x.mean(axis=(1, 2)), atol=LEVEL)
    np.testing.assert_allclose(y.std(axis=(1, 2)), factor * x.std(axis=(1, 2)), atol=LEVEL)
    halves = np.zeros((1, 2, 2, 1), np.float32)
    halves[:, 1] = 1
    expected = np.floor(255 * np.array([0.5 - factor / 2, 0.5 + factor / 2]))  # as the files: truncated, not rounded
    np.testing.assert_array_equal(np.rint(255 * corrupt(halves, "contrast", severity)[0, :, 0, 0]), expected)


@pytest.mark.parametrize("severity, small", zip(SEVERITIES, [30, 28, 27, 24, 20], strict=True))
def test_pixelate_has_as_many_blocks(severity, small):
    """Each row and column of the result is one of `small` different ones, in runs."""
    y = corrupt(np.random.default_rng(0).uniform(size=(1, 32, 32, 1)), "pixelate", severity)[0, :, :, 0]
    assert len(np.unique(y, axis=0)) == len(np.unique(y.T, axis=0)) == small
    for differences in (np.diff(y, axis=0), np.diff(y, axis=1).T):
        assert (differences != 0).any(axis=1).sum() == small - 1


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("severity, factor", zip(SEVERITIES, [0.95, 0.9, 0.85, 0.75, 0.65], strict=True))
def test_pixelate_is_that_of_pillow(severity, factor, size):
    image = pytest.importorskip("PIL.Image")
    x = makers.images(3, (size, size, 3))
    for given, y in zip(x, corrupt(x, "pixelate", severity), strict=True):
        small = image.fromarray(given).resize((int(size * factor),) * 2, image.BOX)
        np.testing.assert_array_equal(np.rint(y * 255), np.asarray(small.resize((size, size), image.BOX)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity, quality", zip(SEVERITIES, [80, 65, 58, 50, 40], strict=True))
def test_jpeg_is_that_of_pillow(severity, quality, channels):
    image = pytest.importorskip("PIL.Image")
    x = smooth_images(3, channels=channels)
    for given, y in zip(np.rint(x * 255).astype(np.uint8), corrupt(x, "jpeg_compression", severity), strict=True):
        stream = io.BytesIO()
        image.fromarray(given if channels == 3 else given[..., 0]).save(stream, "JPEG", quality=quality)
        expected = np.asarray(image.open(stream)).reshape(given.shape) / 255
        np.testing.assert_allclose(y, expected, atol=2 * LEVEL)  # libraries round their transforms differently


def generator(name, severity, seed=0):
    """What `corrupt` draws from, so that a plain loop can draw the same."""
    return np.random.default_rng([seed, CORRUPTIONS.index(name), severity, 0])


@pytest.mark.parametrize(
    "severity, sigma, rounds", zip(SEVERITIES, [0.05, 0.25, 0.4, 0.25, 0.4], [1, 1, 1, 2, 2], strict=True)
)
def test_glass_blur_is_the_loop_that_made_the_files(severity, sigma, rounds):
    x = makers.images(2)
    steps = generator("glass_blur", severity).integers(-1, 1, (2, rounds, 30, 30, 2), dtype=np.int8)
    for image, moves, y in zip(x, steps, corrupt(x, "glass_blur", severity), strict=True):
        image = (ndimage.gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest") * 255).astype(np.uint8)
        for turn in moves:
            for i, row in enumerate(range(31, 1, -1)):
                for j, column in enumerate(range(31, 1, -1)):
                    across, down = turn[i, j]
                    place, other = (row, column), (row + down, column + across)
                    image[place], image[other] = image[other], image[place]  # of NumPy's views no swap, as there
        expected = (ndimage.gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest") * 255).astype(np.uint8)
        np.testing.assert_array_equal(np.rint(y * 255), expected)


def test_motion_blur_averages_along_a_line():
    x = np.zeros((3, 32, 32, 1), np.uint8)
    x[:, 16, 16] = 255
    right, down, aslant = blurred_by_motion(x, 6, 2.0, np.array([0.0, 90.0, 45.0]))[..., 0]
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    expected = np.floor(255 * weights / weights.sum() + 0.5)
    np.testing.assert_array_equal(right[16, 16:3:-1], expected)
    np.testing.assert_array_equal(down[16:3:-1, 16], expected)
    # A step along the diagonal is a pixel long, not a diagonal: seven tenths of a pixel in each direction.
    places = np.ceil(np.arange(13) / np.sqrt(2) - 0.5).astype(int)
    sums = np.bincount(places, weights / weights.sum(), 13)
    np.testing.assert_array_equal(np.diagonal(aslant)[16:3:-1], np.floor(255 * sums + 0.5))
    assert (x.sum() - right.sum()) < 255 * 3 and right[16, 17:].max() == 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_is_an_affine_map_and_a_smooth_field(severity):
    """Against scipy, image by image; OpenCV rounds positions to 1/32 of a pixel, and so do we."""
    x = smooth_images(2)
    strength, sigma, shift = [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)][
        severity - 1
    ]
    drawn = generator("elastic_transform", severity).uniform(-1, 1, (2, 6 + 2 * 32 * 32))
    rows, columns = np.mgrid[:32, :32]
    for image, numbers, y in zip(x, drawn, corrupt(x, "elastic_transform", severity), strict=True):
        before = np.array([[26, 26], [26, 6], [6, 6]])
        after = np.c_[before + shift * numbers[:6].reshape(3, 2), np.ones(3)]
        across, down = (np.c_[columns.ravel(), rows.ravel(), np.ones(1024)] @ np.linalg.inv(after) @ before).T
        fields = numbers[6:].reshape(2, 32, 32)
        if strength:
            fields = [ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3) for field in fields]
        right, below = (strength * field for field in fields)
        for channel in range(3):
            moved = ndimage.map_coordinates(image[..., channel], [down, across], order=1, mode="mirror").reshape(32, 32)
            expected = ndimage.map_coordinates(moved, [rows + below, columns + right], order=1, mode="reflect")
            np.testing.assert_allclose(y[..., channel], expected, atol=4 * LEVEL)
            assert (expected - y[..., channel]).mean() == pytest.approx(0.5 / 255, abs=0.15 / 255)  # truncated


def plasma(numbers, decay):
    """The diamond-square algorithm on a torus, point by point."""
    heights, numbers = np.zeros((32, 32)), iter(numbers)
    step, roughness = 32, 100.0
    while step >= 2:
        half = step // 2
        grids = (
            (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (0, half, [(-half, 0), (half, 0), (0, -half), (0, half)]),
            (half, 0, [(-half, 0), (half, 0), (0, -half), (0, half)]),
        )
        for top, left, corners in grids:
            for row in range(top, 32, step):
                for column in range(left, 32, step):
                    mean = np.mean([heights[(row + down) % 32, (column + right) % 32] for down, right in corners])
                    heights[row, column] = mean + roughness**2 * next(numbers)
        step, roughness = half, roughness / decay
    return (heights - heights.min()) / (heights.max() - heights.min())


@pytest.mark.parametrize(
    "severity, density, decay", zip(SEVERITIES, [0.2, 0.5, 0.75, 1, 1.5], [3, 3, 2.5, 2, 1.75], strict=True)
)
def test_fog_is_a_fractal_cloud(severity, density, decay):
    x = makers.images(2)
    drawn = generator("fog", severity).uniform(-1, 1, (2, 1023))
    for image, numbers, y in zip(x / 255, drawn, corrupt(x, "fog", severity), strict=True):
        foggy = (image + density * plasma(numbers, decay)[..., None]) * image.max() / (image.max() + density)
        np.testing.assert_allclose(y, np.floor(255 * foggy) / 255, atol=1e-6)
    assert not corrupt(
        gray_images(0.0, (1, 40, 50, 1)), "fog", severity
    ).any()  # of other sizes too; black has no light


@pytest.mark.parametrize("severity, clear", zip(SEVERITIES, [0.95, 0.9, 0.9, 0.85, 0.8], strict=True))
def test_snow_whitens_and_falls_on_both_sides(severity, clear):
    y = corrupt(gray_images(0.0, (20, 32, 32, 3)), "snow", severity)
    np.testing.assert_array_equal(y, y[:, ::-1, ::-1])  # the same flakes, turned around
    np.testing.assert_array_equal(y[..., 0], y[..., 2])
    assert y.min() * 255 == np.floor(255 * (1 - clear) * 0.5)
    assert 0.1 < (y > y.min()).mean() < 1 and y.max() > y.min() + 0.1
    colored = corrupt(np.broadcast_to(np.float32([1, 0, 0]), (1, 32, 32, 3)), "snow", severity)[0]
    gray = min(0.299 * 1.5 + 0.5, 1)
    np.testing.assert_allclose(colored.reshape(-1, 3).min(0), [1, (1 - clear) * gray, (1 - clear) * gray], atol=LEVEL)


@pytest.mark.parametrize(
    "x, name, severity, message",
    [
        (
            gray_images(0.5),
            "frost",
            1,
            "frost cannot be computed, because .*no free license; pass the folder of CIFAR-10-C with its",
        ),
        (gray_images(0.5), "noise", 1, "computed corruptions are gaussian_noise, .*Received: 'noise'"),
        (gray_images(0.5), "contrast", 0, r"integers from 1 to 5, at least one. Received: \[0\]"),
        (gray_images(0.5), "contrast", 6, r"Received: \[6\]"),
        (gray_images(0.5), "contrast", 1.5, r"Received: \[1.5\]"),
        (gray_images(2.0), "contrast", 1, r"images to corrupt: images must be floats in \[0, 1\].*from 2 to 2"),
        (gray_images(0.5)[0], "contrast", 1, r"add a batch axis .*Received: shape \(32, 32, 3\)"),
        (gray_images(0.5)[:0], "contrast", 1, "at least one image"),
        (0.5, "contrast", 1, r"Received: shape \(\)"),
        (gray_images(0.5)[..., :2], "contrast", 1, r"1 or 3 channels. Received: shape \(50, 32, 32, 2\)"),
    ],
)
def test_malformed_input_is_refused(x, name, severity, message):
    with pytest.raises(ValueError, match=message) as error:
        corrupt(x, name, severity)
    assert "\n" not in str(error.value)
