"""Neural pruning does what it is for, on real images."""

import numpy as np
import pytest

from tf_robust_sparse import data, evaluation, layers, models, objectives, saving, training
from tf_robust_sparse.attacks import LinfFGSM, LinfPGD

ATTACK = LinfPGD(0.1, 0.03, 5)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    return data.load("fashion_mnist_sample").take(3200, 500)


def batches(images, epochs):
    return data.train_dataset(images.train_images, images.train_labels, 64, seed=0, augmentation=None, epochs=epochs)


def fit(model, optimizer, images, epochs):
    model.compile(optimizer)
    model.fit(batches(images, epochs), epochs=epochs, steps_per_epoch=50, verbose=0)
    return model.network


def all_tested(images):
    x = np.asarray(images.test_images, "float32") / 255
    return x.reshape(-1, 28, 28, 1), images.test_labels


def accuracies(network, images):
    report = evaluation.evaluate_robustness(network, all_tested(images), [LinfFGSM(0.1), LinfPGD(0.1, 0.01, 20)])
    return report["clean_accuracy"], [one["robust_accuracy"] for one in report["attacks"].values()]


@pytest.fixture(scope="module")
def base(images):
    model = training.RobustModel(models.lenet_conv(seed=0), objectives.Natural())
    return fit(model, training.CoupledAdam(1e-3, l2=1e-4), images, 6)


def gated(base):
    network = models.lenet_conv(gates=True, seed=1)
    saving.copy_weights(base, network)
    return network


def test_clean_pruning_closes_units_and_keeps_the_accuracy(base, images):
    network, active = gated(base), []
    model = training.NeuralPruningModel(network, objectives.Natural(), 1 / 3200)
    model.compile(training.GatedAdam(3e-2, l2=1e-4))
    for _ in range(3):
        model.fit(batches(images, 8), epochs=8, steps_per_epoch=50, verbose=0)
        active.append(sum(int(layer.active_units()) for layer in layers.gates(network)))
    assert 1370 > active[0] > active[1] >= active[2]
    assert accuracies(network, images)[0] > accuracies(base, images)[0] - 0.05


@pytest.fixture(scope="module")
def trained(base, images):
    """The base after adversarial training."""
    plain = models.lenet_conv(seed=0)
    saving.copy_weights(base, plain)
    objective = objectives.CleanAndAdversarial(ATTACK, weight=2 / 3, joint=True)
    return fit(training.RobustModel(plain, objective), training.CoupledAdam(1e-3, l2=1e-4), images, 6)


def test_a_black_box_is_no_stronger_than_a_white_one(trained, images):
    objective = objectives.CleanAndAdversarial(ATTACK, weight=2 / 3, joint=True)
    model = training.RobustModel(models.lenet_conv(seed=7), objective, seed=7)
    source = fit(model, training.CoupledAdam(1e-3, l2=1e-4), images, 6)
    attack, (x, y) = LinfPGD(0.1, 0.01, 20), all_tested(images)
    white, own, black = (
        evaluation.vulnerability(trained, x, y, attack, source=each) for each in (None, trained, source)
    )
    assert 0.4 < white.robust_accuracy < white.clean_accuracy - 0.05
    assert black.robust_accuracy >= white.robust_accuracy - 0.01 and black.expected != white.expected
    assert own.robust_accuracy == pytest.approx(white.robust_accuracy, abs=2e-3)


def test_gates_under_attack_are_robust(base, trained, images):
    objective = objectives.CleanAndAdversarial(ATTACK, weight=2 / 3, joint=True)
    suppressed = objectives.VulnerabilitySuppression(objective, 1e-3)
    network = gated(trained)
    for layer in layers.gates(network):  # open at first: with so few images the prior closes them soon enough
        layer.a_raw.assign(np.full(layer.a_raw.shape, 2.0))
    model = training.NeuralPruningModel(network, suppressed, 4 / 3200)
    pruned = fit(model, training.GatedAdam(3e-2, weight_rate=1 / 30, l2=1e-4), images, 6)
    assert sum(int(layer.active_units()) for layer in layers.gates(pruned)) < 1370
    clean, (fgsm, pgd) = accuracies(pruned, images)
    assert pgd > accuracies(base, images)[1][1] + 0.2 and clean > 0.5
    assert pgd <= fgsm + 0.01


def test_suppressed_features_move_less(base, images):
    objective = objectives.CleanAndAdversarial(ATTACK, weight=2 / 3, joint=True)
    x, y = all_tested(images)
    moved = []
    for chosen in (objective, objectives.VulnerabilitySuppression(objective, 2.0)):
        network = models.lenet_conv(seed=0)
        saving.copy_weights(base, network)
        fit(training.RobustModel(network, chosen), training.CoupledAdam(1e-3, l2=1e-4), images, 4)
        moved.append(evaluation.vulnerability(network, x, y, ATTACK))
    assert moved[1].expected < 0.8 * moved[0].expected
    assert moved[1].robust_accuracy > 0.4
