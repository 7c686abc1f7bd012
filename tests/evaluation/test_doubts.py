"""Every path that reports a robust accuracy says what makes it doubtful."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_images, toy_labels, toy_network
from tf_robust_sparse.attacks import LinfFGSM, LinfPGD, Square
from tf_robust_sparse.evaluation import (
    AutoAttack,
    RobustnessSuite,
    evaluate_robustness,
    foolbox_linf_pgd,
    load_saved_model,
    with_pixel_range,
    without_softmax,
)
from tf_robust_sparse.evaluation.leaderboard import radius
from tf_robust_sparse.evaluation.report_page import write_report
from tf_robust_sparse.evaluation.security_curve import security_curve

ONE_STEP = LinfPGD(0.01, num_steps=1)
QUIET = {"batch_size": 60, "progress": False}


@pytest.fixture(scope="module")
def some():
    return toy_images()[:60], toy_labels()[:60]


@tf.custom_gradient
def rounded(x):
    return tf.round(x * 64) / 64, tf.zeros_like


def masked(x):
    return toy_network()(rounded(x))


def confident(x):
    return toy_network(1000.0)(x)


def of_suite(model, some):
    suite = RobustnessSuite(model, some, **QUIET)
    suite.gradient_attack("fgsm", LinfFGSM(0.01))
    return suite.results()


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, some: evaluate_robustness(model, some, ONE_STEP, **QUIET),
        lambda model, some: foolbox_linf_pgd(model, some, 0.01, num_steps=1, restarts=1, **QUIET),
        lambda model, some: security_curve(model, some, ONE_STEP, [0.01], **QUIET),
        of_suite,
    ],
    ids=["pgd", "foolbox", "curve", "suite"],
)
def test_zero_gradients_are_told_of(measure, some):
    assert "zero_gradient" in measure(masked, some)["flag_names"]
    assert measure(toy_network(), some)["flag_names"] == []


def test_foolbox_stands_still_where_our_attack_does_not(some):
    ours = evaluate_robustness(confident, some, LinfPGD(0.01, num_steps=5), **QUIET)
    theirs = foolbox_linf_pgd(confident, some, 0.01, num_steps=5, restarts=1, **QUIET)
    assert theirs["robust_accuracy"] > ours["robust_accuracy"] + 0.1
    assert theirs["flag_names"] == ["zero_gradient"] and ours["flag_names"] == []


def test_a_randomised_network_is_told_of(some):
    noisy = lambda x: toy_network()(x + tf.random.normal(tf.shape(x), stddev=0.1))  # noqa: E731
    assert "randomised" in evaluate_robustness(noisy, some, [], **QUIET)["flag_names"]


def test_batch_norm_in_training_mode_is_told_of_once(some):
    normalize = keras.layers.BatchNormalization()
    network = lambda x: normalize(toy_network()(x), training=True)  # noqa: E731
    assert "batch_dependent" in evaluate_robustness(network, some, [], **QUIET)["flag_names"]
    suite = RobustnessSuite(network, some, **QUIET)
    attack = AutoAttack(network, "Linf", 0.01, "custom", [Square(0.01, num_queries=2)], batch_size=60, verbose=False)
    suite.auto_attack("square", attack)
    assert suite.results()["flag_names"].count("batch_dependent") == 1


def test_other_pixels_than_expected_are_told_of(some):
    bytes_expected = lambda x: toy_network()(x / 255)  # noqa: E731
    suite = RobustnessSuite(bytes_expected, some, **QUIET)
    for result in (evaluate_robustness(bytes_expected, some, [], **QUIET), suite.results()):
        assert result["flag_names"] == ["pixel_range"] and "--pixel_range=255" in result["flags"][0]
    scaled = evaluate_robustness(with_pixel_range(bytes_expected, 255), some, [], **QUIET)
    assert scaled["clean_accuracy"] == 0.95 and scaled["flag_names"] == []
    guessing = evaluate_robustness(toy_network(), (some[0], (some[1] + 1) % 10), [], **QUIET)
    assert guessing["flag_names"] == ["near_chance"]
    for bad in (0, -1, "255", float("nan"), True):
        with pytest.raises(ValueError, match="`pixel_range` is the largest pixel"):
            with_pixel_range(bytes_expected, bad)


def test_a_saved_model_of_bytes_and_a_softmax_is_measured_as_its_network(some, tmp_path):
    """The commonest Keras model there is: pixels from 0 to 255, rescaled inside, and a softmax at the end."""
    x, y = some
    body = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    network = keras.Sequential([keras.Input((8, 8, 3)), *body])
    y = np.argmax(network(255 * x), -1)
    network.export(str(tmp_path / "serve"), verbose=False)
    loaded = load_saved_model(tmp_path / "serve")
    images = tf.constant(x)
    for model in (without_softmax(loaded), without_softmax(network)):
        scaled = with_pixel_range(model, 255)
        np.testing.assert_allclose(tf.nn.softmax(scaled(images)), network(255 * x), rtol=1e-5, atol=1e-7)
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = scaled(images)
        assert np.any(tape.gradient(logits, images)) and scaled.input_shape == (None, 8, 8, 3)
        assert evaluate_robustness(scaled, (x, y), [], **QUIET)["clean_accuracy"] == 1
    logits_already = keras.Sequential([keras.Input((8, 8, 3)), *body[:2], keras.layers.Dense(10)])
    logits_already.export(str(tmp_path / "logits"), verbose=False)
    with pytest.raises(ValueError, match="a network that returns logits needs no change"):
        without_softmax(load_saved_model(tmp_path / "logits"))


def test_a_page_says_what_is_known(some, tmp_path):
    suite = RobustnessSuite(toy_network(), some, **QUIET)
    suite.gradient_attack("pgd", LinfPGD(0.2, num_steps=1))
    page, _ = write_report(tmp_path / "page.md", suite.results())
    text = page.read_text()
    assert text.startswith("# Robustness of a network") and "60 test images, Linf ball of radius 0.2." in text
    assert "None were kept: only AutoAttack" in text and "broke no image" not in text and "versions" not in text
    nothing = {"x": some[0], "broken_by": np.full(60, -1)}
    write_report(page, {**suite.results(), "title": "T", "versions": {"a": 1}}, nothing)
    assert "AutoAttack broke no image" in page.read_text() and "a 1 |" in page.read_text()


def test_a_radius_is_a_fraction_where_that_is_shorter():
    written = [radius("Linf", epsilon) for epsilon in (8 / 255, 0.2, 0.1, 0.05, 1.0, 2 / 255)]
    assert written == ["8/255", "0.2", "0.1", "0.05", "1", "2/255"]
    assert radius("L2", 0.5) == "0.5"
