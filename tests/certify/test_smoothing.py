"""Certificates by randomized smoothing: the published numbers, coverage, separate streams, and tables that go on."""

import math
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import certify
from tf_robust_sparse.certify import gaussian_noise, smoothing
from tf_robust_sparse.certify.smoothing import ABSTAIN, high_probability_accuracy

TRIALS = 10_000


@pytest.mark.parametrize(
    ("successes", "probability", "radius"),
    [
        (10_000, 0.9993095, 0.799644),
        (9_900, 0.9865312, 0.553105),
        (9_000, 0.8904097, 0.307178),
        (6_000, 0.5847477, 0.0535136),
        (5_155, None, None),
        (5_156, None, 6.26e-5),
    ],
)
def test_published_bounds_and_radii(successes, probability, radius):
    if probability is not None:
        assert smoothing.lower_confidence_bound(successes, TRIALS, 0.001) == pytest.approx(probability, abs=1e-6)
    found = smoothing.certified_radius(successes, TRIALS, 0.001, 0.25)
    assert found is None if radius is None else found == pytest.approx(radius, abs=1e-6)


def test_first_counts_that_certify_anything():
    for trials, first in ((100, 66), (1000, 550), (100_000, 50_490)):
        assert smoothing.certified_radius(first - 1, trials, 0.001, 0.25) is None
        assert smoothing.certified_radius(first, trials, 0.001, 0.25) >= 0
    assert smoothing.certified_radius(9_640, TRIALS, 0.001, 0.25) >= 110 / 255
    assert smoothing.certified_radius(9_639, TRIALS, 0.001, 0.25) < 110 / 255
    assert smoothing.lower_confidence_bound(0, 10, 0.001) == 0


def test_published_predictions_and_the_bound_over_all_images():
    assert smoothing.prediction_p_value(67, 33) == pytest.approx(8.737e-4, rel=1e-3)
    assert smoothing.prediction_p_value(66, 34) == pytest.approx(1.790e-3, rel=1e-3)
    assert high_probability_accuracy(0.5, 500, 0.001, 0.001) == pytest.approx(0.4906797, abs=1e-6)


def linear(weights, margin):
    """Two classes apart by a hyperplane at a known distance from the origin."""
    weights = tf.constant(weights, tf.float32)

    def model(x):
        value = tf.linalg.matvec(tf.reshape(x, (tf.shape(x)[0], -1)), weights) + margin
        return tf.stack([value, -value], axis=1)

    return model


@pytest.mark.slow
def test_radii_are_too_large_as_rarely_as_they_may_be():
    sigma, margin = 0.25, 0.1
    smoothed = certify.SmoothedClassifier(linear([0.6, 0.8], margin), sigma, batch_size=5000)
    x = np.zeros((1, 2, 1), "float32")
    radii = [smoothed.certify(x, 100, 5000, 0.001, image=image).radius for image in range(300)]
    assert sum(radius > margin for radius in radii) <= 3  # 0.3 are to be expected
    assert np.mean(radii) > 0.8 * margin
    assert len(set(radii)) > 50


def test_votes_have_the_exact_probability_and_are_complete():
    sigma, margin = 0.25, 0.1
    smoothed = certify.SmoothedClassifier(linear([0.6, 0.8], margin), sigma, batch_size=300)
    x = np.zeros((1, 2, 1), "float32")
    votes = smoothed.votes(x, 20_001)
    assert votes.dtype == np.int64 and votes.sum() == 20_001
    from scipy import stats  # takes a second

    exact = stats.norm.cdf(margin / sigma)
    assert votes[0] / 20_001 == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_001))
    assert (smoothed.votes(x, 20_001) == votes).all()
    for other in (smoothed.votes(x, 20_001, image=1), smoothed.votes(x, 20_001, stream=0)):
        assert (other != votes).any()
    assert (certify.SmoothedClassifier(linear([0.6, 0.8], margin), sigma, 300, seed=1).votes(x, 20_001) != votes).any()
    assert (smoothed.votes(x, 1)).sum() == 1


def test_a_point_on_the_border_is_left_undecided():
    smoothed = certify.SmoothedClassifier(linear([1.0, 0.0], 0.0), 0.25)
    x = np.zeros((1, 2, 1), "float32")
    assert smoothed.certify(x, 100, 1000) == (ABSTAIN, 0.0)
    assert smoothed.predict(x, 1000) == ABSTAIN
    sure = certify.SmoothedClassifier(linear([1.0, 0.0], -1.0), 0.25)
    assert sure.predict(x) == 1 and sure.certify(x, 100, 1000).prediction == 1
    prediction, radius = sure.monitor(x)
    assert prediction == 1 and radius > 0


@pytest.mark.parametrize("kernel", ["plain", "rewiring", "masked", "subnet"])
def test_networks_of_every_parametrization(kernel):
    network, (x, _) = tiny_network(kernel), tiny_images(2)
    votes = certify.SmoothedClassifier(network, 0.25, batch_size=64).votes(x[0], 200)
    function = certify.SmoothedClassifier(lambda x: network(x, training=False), 0.25, batch_size=64)
    assert votes.sum() == 200
    assert np.abs(votes - function.votes(x[0], 200)).sum() <= 4  # folded batch norm rounds differently


def rows_of(path):
    return [line.split("\t") for line in path.read_text().splitlines()[2:]]


def test_a_table_goes_on_where_it_was_stopped(tmp_path):
    network, (x, y) = tiny_network("plain"), tiny_images(12)
    path = tmp_path / "sub" / "certificates.tsv"

    def certified(**more):
        smoothed = certify.SmoothedClassifier(network, 0.1, batch_size=100)
        return certify.certify_images(smoothed, x, y, path, n0=20, n=200, skip=2, **more)

    seen = []
    whole = certified(progress=seen.append)
    assert [row.image for row in whole] == [0, 2, 4, 6, 8, 10] and seen == whole
    assert [(int(row[0]), int(row[2]), float(row[3])) for row in rows_of(path)] == [
        (row.image, row.prediction, row.radius) for row in whole
    ]
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:4]) + "6\t3\t")  # killed in the middle of a line
    again = certified()
    assert [row[:5] for row in again] == [row[:5] for row in whole]
    assert [row[:5] for row in rows_of(path)] == [line.split("\t")[:5] for line in text.splitlines()[2:]]
    assert len(certified(max_examples=2)) == 2
    accuracies = certify.certified_accuracy(whole, [0.0, 0.05, 10.0])
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == 0
    assert accuracies[0] == np.mean([row.correct for row in whole])


def test_damaged_and_foreign_tables_are_refused(tmp_path):
    network, (x, y) = tiny_network("plain"), tiny_images(4)
    path = tmp_path / "certificates.tsv"

    def certified(sigma=0.1, labels=y):
        smoothed = certify.SmoothedClassifier(network, sigma, batch_size=100)
        return certify.certify_images(smoothed, x, labels, path, n0=10, n=100)

    certified()
    with pytest.raises(ValueError, match="of other settings"):
        certified(sigma=0.2)
    with pytest.raises(ValueError, match="it belongs to other data"):
        certified(labels=(y + 1) % 10)
    text = path.read_text()
    path.write_text(text.replace("\n2\t", "\ntwo\t"))
    with pytest.raises(ValueError, match="line 5 is damaged"):
        certified()
    for damage in (("\t0.", "\tinf."), ("\t0\t0.", "\t2\t0.")):
        path.write_text(text.replace(*damage).replace("inf.", "inf\t"))
        with pytest.raises(ValueError, match=r"line \d is damaged"):
            certified()
    path.write_bytes(b"\x00\xff nothing")
    with pytest.raises(ValueError, match="not a table of certificates"):
        certified()
    path.write_text(text[:30])  # a kill in the middle of the first line
    assert [row[:5] for row in certified()] == [row[:5] for row in certified()]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        certified()


def test_bad_settings():
    model = linear([1.0, 0.0], 1.0)
    for sigma in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="`sigma` is the standard deviation"):
            certify.SmoothedClassifier(model, sigma)
    with pytest.raises(ValueError, match="`batch_size`"):
        certify.SmoothedClassifier(model, 0.1, batch_size=0)
    smoothed = certify.SmoothedClassifier(model, 0.1)
    x = np.zeros((1, 2, 1), "float32")
    for n0, n in ((0, 10), (100, 10), (100, 10**10)):
        with pytest.raises(ValueError, match="1 <= n0 <= n"):
            smoothed.certify(x, n0, n)
    for ask, least in ((lambda n: smoothed.predict(x, n), 11), (lambda n: smoothed.certify(x, 5, n), 10)):
        with pytest.raises(ValueError, match=f"`n` must be at least {least}: fewer answers can only abstain"):
            ask(least - 1)
        ask(least)
    sure = certify.SmoothedClassifier(linear([1.0, 0.0], 9.0), 0.1)
    assert sure.predict(x, 11) == sure.certify(x, 5, 10).prediction == 0
    for alpha in (0, 1):
        with pytest.raises(ValueError, match="`alpha`"):
            smoothed.certify(x, alpha=alpha)
    with pytest.raises(ValueError, match="`skip`"):
        certify.certify_images(smoothed, x[None], np.zeros(1, int), skip=0)
    broken = certify.SmoothedClassifier(lambda x: tf.fill((tf.shape(x)[0], 2), math.nan), 0.1)
    with pytest.raises(ValueError, match="not finite"):
        broken.votes(x, 10)


def test_bits_are_those_of_threefry():
    """The known answers that the authors of Threefry-2x32 publish for 20 rounds."""
    for key, counter, expected in (
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ):
        found = gaussian_noise.threefry(*(tf.constant(word, tf.uint32) for word in (key, *counter)))
        assert tuple(int(word) for word in found) == expected


def test_words_become_a_radius_and_an_angle():
    """As Box and Muller have it, up to quarters of the circle, at the ends of the range and in between."""
    words = np.random.default_rng(0).integers(0, 2**32, (2, 100_000), dtype=np.uint32)
    words[:, :6] = [[0, 1, 2**31, 2**32 - 1, 2**32 - 2, 2**24], [0, 2**29, 2**30, 2**31, 2**32 - 1, 3 * 2**29]]
    first, second = (np.array(value, float) for value in gaussian_noise.gaussian_pairs(*map(tf.constant, words)))
    radius = np.sqrt(-2 * np.log(np.minimum(((words[0] >> 1) + 0.5) / 2**31, 1)))
    np.testing.assert_allclose(np.hypot(first, second), radius, rtol=1e-6, atol=3e-4)  # 1 - u has 24 bits only
    far = radius > 0.1
    within = ((words[1] << np.uint32(2)).view(np.int32) >> 2) * np.pi / 2**31  # the angle without its quarter
    turned = np.angle((first + 1j * second) * np.exp(-1j * within))[far]
    quarters = np.round(turned / (np.pi / 2))
    np.testing.assert_allclose(turned, quarters * (np.pi / 2), atol=1e-6)
    assert set(np.abs(quarters)) == {0, 1, 2}


def test_noise_is_normal_and_of_its_key_and_block():
    x, key = tf.zeros((97, 101, 3)), tf.constant([1, 2], tf.uint32)

    def draw(key, block):
        return gaussian_noise.noisy_copies(x, 3, key, tf.constant(block), 0.5).numpy()

    noise = draw(key, 0)
    assert noise.shape == (3, 97, 101, 3) and np.isfinite(noise).all()
    values = noise.ravel() / 0.5
    from scipy import stats  # takes a second

    assert stats.kstest(values, "norm").pvalue > 0.01
    assert stats.kstest(np.abs(values[np.abs(values) > 2]), stats.truncnorm(2, np.inf).cdf).pvalue > 0.01
    a, b = noise[0].ravel(), noise[2].ravel()  # cosine and sine of the same radius are independent all the same
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03 and abs(np.corrcoef(a**2, b**2)[0, 1]) < 0.03
    np.testing.assert_array_equal(noise, draw(key, 0))
    for other in (draw(key, 1), draw(tf.constant([1, 3], tf.uint32), 0), draw(tf.constant([0, 2], tf.uint32), 0)):
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02
    np.testing.assert_allclose(
        gaussian_noise.noisy_copies(x + 0.25, 3, key, tf.constant(0), 0.5), noise + 0.25, atol=1e-6
    )
