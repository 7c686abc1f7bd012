"""The levels that the specification gives for short training on MNIST."""

import itertools
import os

import numpy as np
import pytest

from tf_robust_sparse import data, evaluation, layers, models, objectives, saving, training
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.layers.beta_bernoulli import prior_divergence
from tf_robust_sparse.training.optimizers import CoupledAdam

ROOT = os.environ.get("TRS_DATA_DIR")
pytestmark = [
    pytest.mark.reference_data,
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT, reason="set TRS_DATA_DIR to the folder of the real data sets"),
]
PGD_40 = LinfPGD(0.3, 0.01, 40)


@pytest.fixture(scope="module")
def images():
    return data.load("mnist", ROOT)


def tested(images):
    return np.asarray(images.test_images, "float32") / 255, images.test_labels


def fit(model, optimizer, epochs, images):
    batches = data.train_dataset(images.train_images, images.train_labels, 64, seed=0, augmentation=None, epochs=epochs)
    model.compile(optimizer)
    model.fit(batches, epochs=epochs, steps_per_epoch=937, verbose=0)
    return model.network


@pytest.fixture(scope="module")
def base(images):
    """Two epochs on clean images."""
    model = training.RobustModel(models.lenet_conv(seed=0), objectives.Natural())
    return fit(model, CoupledAdam(1e-3, l2=1e-4, epsilon=1e-8), 2, images)


def gated(base):
    network = models.lenet_conv(gates=True, seed=1)
    saving.copy_weights(base, network)
    return network


def test_base_and_pruning_on_clean_images(base, images):
    x, y = tested(images)
    report = evaluation.evaluate_robustness(base, (x[:1000], y[:1000]), PGD_40, progress=False)
    assert report["robust_accuracy"] == 0
    assert evaluation.evaluate_robustness(base, (x, y), [], progress=False)["clean_accuracy"] >= 0.975

    network = gated(base)
    at_start = float(prior_divergence(network))
    model = training.NeuralPruningModel(network, objectives.Natural(), 1 / 60_000)
    active = [1370]
    optimizer = training.GatedAdam(1e-2, l2=1e-4, epsilon=1e-8)
    for _ in range(5):
        fit(model, optimizer, 1, images)
        active.append(sum(int(layer.active_units()) for layer in layers.gates(network)))
    assert all(later < earlier for earlier, later in itertools.pairwise(active))
    assert at_start == pytest.approx(9658.4, abs=0.5)
    assert evaluation.evaluate_robustness(network, (x, y), [], progress=False)["clean_accuracy"] >= 0.985


@pytest.mark.timeout(7200)
def test_gates_under_attack_beside_adversarial_training(base, images):
    """Ten epochs each from the same base, about 40 minutes on two cores."""
    x, y = tested(images)
    attacked = objectives.CleanAndAdversarial(LinfPGD(0.3, 0.01, 20), weight=2 / 3, joint=True)
    plain = models.lenet_conv(seed=0)
    saving.copy_weights(base, plain)
    fit(training.RobustModel(plain, attacked), CoupledAdam(1e-3, l2=1e-4, epsilon=1e-8), 10, images)
    suppressed = objectives.VulnerabilitySuppression(attacked, 1e-3)
    model = training.NeuralPruningModel(gated(base), suppressed, 4 / 60_000)
    network = fit(model, training.GatedAdam(1e-2, weight_rate=0.1, l2=1e-4, epsilon=1e-8), 10, images)
    trained, pruned = (evaluation.vulnerability(each, x[:1000], y[:1000], PGD_40) for each in (plain, network))
    assert evaluation.evaluate_robustness(network, (x, y), [], progress=False)["clean_accuracy"] >= 0.97
    assert pruned.robust_accuracy >= 0.8
    assert sum(int(layer.active_units()) for layer in layers.gates(network)) < 1000
    assert trained.robust_accuracy >= 0.8
    before = evaluation.vulnerability(base, x[:1000], y[:1000], PGD_40)
    assert max(trained.expected, pruned.expected) < 0.5 * before.expected
