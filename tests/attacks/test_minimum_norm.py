"""Attacks that look for the nearest adversarial example, against exact distances and against Foolbox."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import public_networks
from tests.attacks.networks import batch, small_network
from tests.attacks.toy import toy_images, toy_labels, toy_network
from tests.conformance.cases import MINIMUM_NORM_ATTACKS
from tf_robust_sparse import data
from tf_robust_sparse.attacks import DDN, FMN, HOFMN, DeepFool, SigmaZero
from tf_robust_sparse.attacks.ho_fmn import SEARCH_SPACE
from tf_robust_sparse.attacks.minimum_norm import cosine
from tf_robust_sparse.attacks.projections import l0_ball
from tf_robust_sparse.evaluation import AutoAttack, minimum_norms
from tf_robust_sparse.evaluation.minimum_norms import distances_as_results, nearest_examples

DUAL = {"Linf": 1, "L2": 2, "L1": np.inf}


@pytest.fixture(scope="module")
def linear():
    """A linear classifier of two classes, images in the middle of the range, and exact distances by the dual norm."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(48, 2)).astype("float32")
    x = random.uniform(0.48, 0.52, (64, 4, 4, 3)).astype("float32")

    def network(images):
        return tf.matmul(tf.reshape(images - 0.5, (-1, 48)), weights)

    logits = network(x).numpy()
    gap, normal = np.abs(logits[:, 0] - logits[:, 1]), weights[:, 0] - weights[:, 1]
    exact = {norm: gap / np.linalg.norm(normal, dual) for norm, dual in DUAL.items()}
    return network, x, logits.argmax(-1), exact


@pytest.mark.parametrize(
    ("attack", "within"),
    [(FMN("Linf", 200), 0.01), (FMN("L2", 200), 0.01), (FMN("L1", 200), 0.01), (DDN(200), 0.01)],
)
def test_the_boundary_of_a_linear_network_is_found(attack, within, linear):
    network, x, y, exact = linear
    found = minimum_norms(network, (x, y), attack, progress=False)
    ratio = np.array(found["distances"]) / exact[attack.norm]
    assert ratio.min() > 1 - 1e-5 and ratio.max() < 1 + within


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_the_first_step_of_deepfool_reaches_the_boundary_of_a_linear_network(norm, linear):
    network, x, y, exact = linear
    found = DeepFool(norm, num_steps=2, overshoot=0.0).nearest(network, x, y)
    assert np.array(found.found).all()
    beyond = 1e-4 * (np.sqrt(48) if norm == "L2" else 1)  # the constant that is added to a step
    np.testing.assert_allclose(found.distance, exact[norm], atol=beyond + 1e-6)


@pytest.mark.parametrize("name", MINIMUM_NORM_ATTACKS)
def test_examples_are_real_and_do_not_depend_on_the_batch(name):
    attack = MINIMUM_NORM_ATTACKS[name]()
    network, x, y = toy_network(), toy_images()[:24], toy_labels()[:24]
    whole = nearest_examples(network, attack, x, y, 24, "", False)
    if not isinstance(attack, HOFMN):  # its steps of signs turn a rounding error into another path
        parts = nearest_examples(network, attack, x, y, 16, "", False)
        np.testing.assert_allclose(whole.distance, parts.distance, rtol=1e-4, atol=1e-5)
    wrong = np.argmax(network(whole.x_adv), -1) != y
    assert (wrong == np.isfinite(whole.distance)).all() and wrong.mean() > 0.5
    assert whole.x_adv.min() >= 0 and whole.x_adv.max() <= 1
    delta = np.abs(whole.x_adv - x).reshape(len(x), -1)
    length = {"Linf": delta.max(1), "L2": np.linalg.norm(delta, axis=1), "L0": (delta > 0).sum(1)}[attack.norm]
    np.testing.assert_allclose(whole.distance[wrong], length[wrong], rtol=1e-5, atol=1e-6)
    at_once = np.argmax(network(x), -1) != y
    assert at_once.any() and (whole.distance[at_once] == 0).all()
    assert type(attack).from_config(attack.get_config()).describe() == attack.describe()


def test_fmn_agrees_with_foolbox():
    fb = pytest.importorskip("foolbox")
    network, (x, y) = small_network(), batch(40)
    y = np.argmax(network(x), -1)
    model = fb.TensorFlowModel(network, bounds=(0, 1))
    _, clipped, _ = fb.attacks.LInfFMNAttack(steps=50)(model, tf.constant(x), tf.constant(y), epsilons=None)
    expected = np.median(np.abs(np.array(clipped) - x).max((1, 2, 3)))
    assert minimum_norms(network, (x, y), FMN("Linf", 50), progress=False)["median_distance"] <= 1.03 * expected


def test_the_curve_falls_from_the_clean_accuracy_and_stands_for_every_radius():
    network, x, y = toy_network(), toy_images()[:100], toy_labels()[:100]
    found = minimum_norms(network, (x, y), FMN(num_steps=20), batch_size=50, progress=False)
    accuracies = [point["robust_accuracy"] for point in found["points"]]
    assert accuracies[0] == pytest.approx(found["clean_accuracy"]) == 0.95
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < 0.1
    point = found["points"][40]
    assert point["robust_accuracy"] == np.mean(np.array(found["distances"]) > point["epsilon"])


def test_schedules_are_those_of_the_paper():
    share = [float(cosine(tf.constant(i), 0.05, 0.001, 100)) for i in (0, 25, 50, 75, 99)]
    np.testing.assert_allclose(share, [0.05, 0.042824, 0.0255, 0.0081759, 0.0010121], rtol=1e-4)


def test_exactly_the_largest_changes_stay():
    x = tf.zeros((2, 1, 4, 1))
    x_adv = tf.reshape(tf.constant([[0.5, 0.5, 0.5, 0.1], [0.1, 0.4, 0.2, 0.3]]), (2, 1, 4, 1))
    left = np.array(l0_ball(x_adv, x, tf.constant([2.0, 1.0]))).reshape(2, 4)
    np.testing.assert_array_equal(left, np.float32([[0.5, 0.5, 0, 0], [0, 0.4, 0, 0]]))
    assert not np.array(l0_ball(x_adv, x, tf.constant([0.0, 0.0]))).any()


def test_sigma_zero_needs_no_more_entries_than_fmn():
    network, x, y = toy_network(), toy_images()[:100], toy_labels()[:100]
    ours, theirs = (
        np.array(minimum_norms(network, (x, y), attack, progress=False)["distances"], float)
        for attack in (SigmaZero(50), FMN("L0", 50))
    )
    assert ours.mean() <= theirs.mean()
    radii = [point["epsilon"] for point in distances_as_results(ours, "L0")["points"]]
    assert radii == sorted({round(each) for each in radii}) and radii[0] == 0


@pytest.mark.parametrize("optimizer", SEARCH_SPACE)
def test_tuning_repeats_and_finds_better_parameters(optimizer):
    network, x, y = toy_network(), toy_images()[:32], toy_labels()[:32]
    medians = []
    settings = {"trials": 4, "tuning_steps": 10, "num_steps": 10, "optimizer": optimizer}
    attack = HOFMN.tuned(network, x, y, **settings, after_each=lambda _, median: medians.append(median))
    assert attack.parameters == HOFMN.tuned(network, x, y, **settings).parameters
    assert {*attack.parameters} == {*SEARCH_SPACE[optimizer]} and len(medians) == 4
    away = np.array(attack.nearest(network, x, y).distance)
    assert np.median(away[away > 0]) == pytest.approx(min(medians), rel=1e-3) and min(medians) < max(medians)


def test_bad_arguments_are_named():
    for make, said in (
        (lambda: FMN("L3"), "`norm` is one of Linf, L2, L1, L0. Received: norm='L3'"),
        (lambda: DeepFool("L1"), "`norm` is one of L2, Linf"),
        (lambda: FMN(num_steps=0), "`num_steps` is an integer, at least 1"),
        (lambda: FMN(decay=1.0), "`decay` is a number above 0 and below 1. Received: decay=1.0"),
        (lambda: DDN(levels=1), "`levels` is an integer, at least 2"),
        (lambda: SigmaZero(sigma=0), "`sigma` is a number above 0"),
        (lambda: HOFMN(decay=0.0), "`decay` is a number above 0 and below 1. Received: decay=0.0"),
        (lambda: HOFMN(loss="mse"), "`loss` is one of margin, ce, dlr"),
        (lambda: HOFMN(parameters={"lr": 1}), "`parameters` of sgd are lr, momentum, weight_decay, dampening"),
        (lambda: minimum_norms(toy_network(), (toy_images(), toy_labels()), "fmn"), "such as trs.attacks.FMN"),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert said in str(error.value)


@pytest.mark.reference_data
@pytest.mark.skipif("TRS_DATA_DIR" not in os.environ, reason="TRS_DATA_DIR names no folder of reference data")
def test_a_public_network_is_broken_as_near_as_by_foolbox_and_never_below_autoattack():
    fb = pytest.importorskip("foolbox")
    folder = Path(os.environ["TRS_DATA_DIR"])
    network = public_networks.read(folder / "robust-weights/cifar_cnn_a_adv.npz", (32, 32, 3))
    images = data.load("cifar10", folder / "cifar10").take(1, 100)
    x, y = images.test_images.astype("float32") / 255, images.test_labels.astype("int64")
    found = minimum_norms(network, (x, y), FMN("Linf"), batch_size=100, progress=False)
    model = fb.TensorFlowModel(network, bounds=(0, 1))
    _, clipped, _ = fb.attacks.LInfFMNAttack(steps=100)(model, tf.constant(x), tf.constant(y), epsilons=None)
    assert found["median_distance"] <= 1.03 * np.median(np.abs(np.array(clipped) - x).max((1, 2, 3)))
    curve = np.mean(np.array(found["distances"], float) > 2 / 255)
    auto_attack = AutoAttack(network, "Linf", 2 / 255, verbose=False).run_standard_evaluation(x, y)
    assert curve >= auto_attack["robust_accuracy"]
