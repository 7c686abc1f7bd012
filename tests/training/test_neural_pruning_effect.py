"""Neural pruning does what it is for, on real images, 16x16 pixels shortly and 28x28; `python -m pytest -m full`."""

import collections

import numpy as np
import pytest

from tests.networks import accuracy, resized
from tf_robust_sparse import data, evaluation, layers, models, objectives, saving, training
from tf_robust_sparse.attacks import LinfFGSM, LinfPGD
from tf_robust_sparse.training.optimizers import CoupledAdam

Scale = collections.namedtuple("Scale", "size units epochs attack strong robust suppression")
SHORT = Scale(16, 620, 3, LinfPGD(0.1, 0.05, 3), LinfPGD(0.1, 0.025, 8), 0.25, 5.0)
LONG = Scale(28, 1370, 6, LinfPGD(0.1, 0.03, 5), LinfPGD(0.1, 0.01, 20), 0.4, 2.0)
pytestmark = [pytest.mark.slow, pytest.mark.full]


@pytest.fixture(scope="module", params=[SHORT, LONG], ids=["short", "long"])
def scale(request):
    return request.param


@pytest.fixture(scope="module")
def images(scale):
    return resized(data.load("fashion_mnist_sample").take(3200, 500), scale.size)


def lenet(scale, **settings):
    return models.lenet_conv(input_shape=(scale.size, scale.size, 1), **settings)


def objective_of(scale):
    return objectives.CleanAndAdversarial(scale.attack, weight=2 / 3, joint=True)


def fit(model, optimizer, images, epochs):
    if optimizer is not None:
        model.compile(optimizer)
    batches = data.train_dataset(images.train_images, images.train_labels, 64, seed=0, augmentation=None, epochs=epochs)
    model.fit(batches, epochs=epochs, steps_per_epoch=50, verbose=0)
    return model.network


def all_tested(images):
    return np.asarray(images.test_images, "float32") / 255, images.test_labels


def active_units(network):
    return sum(int(layer.active_units()) for layer in layers.gates(network))


def copied(source, network):
    saving.copy_weights(source, network)
    return network


@pytest.fixture(scope="module")
def base(scale, images):
    model = training.RobustModel(lenet(scale, seed=0), objectives.Natural())
    return fit(model, CoupledAdam(1e-3, l2=1e-4), images, scale.epochs)


@pytest.fixture(scope="module")
def trained(scale, base, images):
    """The base after adversarial training."""
    model = training.RobustModel(copied(base, lenet(scale, seed=0)), objective_of(scale))
    return fit(model, CoupledAdam(1e-3, l2=1e-4), images, scale.epochs)


def opened(network):
    """Opens the gates at first: with so few images the prior closes them soon enough."""
    for layer in layers.gates(network):
        layer.a_raw.assign(np.full(layer.a_raw.shape, 2.0))
    return network


def test_clean_pruning_closes_units_and_keeps_the_accuracy(scale, base, images):
    network, active = copied(base, lenet(scale, gates=True, seed=1)), []
    if scale is SHORT:
        model = training.NeuralPruningModel(opened(network), objectives.Natural(), 4 / 3200)
    else:
        model = training.NeuralPruningModel(network, objectives.Natural(), 1 / 3200)
    model.compile(training.GatedAdam(3e-2, l2=1e-4))
    for epochs in (3, 1, 1) if scale is SHORT else (8, 8, 8):
        fit(model, None, images, epochs)
        active.append(active_units(network))
    assert scale.units > active[0] > active[1] >= active[2]
    assert accuracy(network, images) > accuracy(base, images) - 0.05


def test_a_black_box_is_no_stronger_than_a_white_one(scale, base, trained, images):
    x, y = all_tested(images)
    white = evaluation.vulnerability(trained, x, y, scale.strong)
    black = evaluation.vulnerability(trained, x, y, scale.strong, source=base)
    assert scale.robust < white.robust_accuracy < white.clean_accuracy - 0.05
    assert black.robust_accuracy >= white.robust_accuracy - 0.01 and black.expected != white.expected
    if scale is LONG:
        own = evaluation.vulnerability(trained, x, y, scale.strong, source=trained)
        assert own.robust_accuracy == pytest.approx(white.robust_accuracy, abs=2e-3)
        model = training.RobustModel(lenet(scale, seed=7), objective_of(scale), seed=7)
        source = fit(model, CoupledAdam(1e-3, l2=1e-4), images, scale.epochs)
        black = evaluation.vulnerability(trained, x, y, scale.strong, source=source)
        assert black.robust_accuracy >= white.robust_accuracy - 0.01 and black.expected != white.expected


def test_gates_under_attack_are_robust(scale, base, trained, images):
    suppressed = objectives.VulnerabilitySuppression(objective_of(scale), 1e-3)
    network = opened(copied(trained, lenet(scale, gates=True, seed=1)))
    model = training.NeuralPruningModel(network, suppressed, 4 / 3200)
    fit(model, training.GatedAdam(3e-2, weight_rate=1 / 30, l2=1e-4), images, scale.epochs)
    assert active_units(network) < scale.units
    fgsm, pgd = (accuracy(network, images, attack) for attack in (LinfFGSM(0.1), scale.strong))
    assert pgd > accuracy(base, images, scale.strong) + 0.2 and accuracy(network, images) > 0.5
    assert pgd <= fgsm + 0.01


def test_suppressed_features_move_less(scale, base, trained, images):
    suppressed = objectives.VulnerabilitySuppression(objective_of(scale), scale.suppression)
    model = training.RobustModel(copied(base, lenet(scale, seed=0)), suppressed)
    network = fit(model, CoupledAdam(1e-3, l2=1e-4), images, scale.epochs)
    without, found = (evaluation.vulnerability(each, *all_tested(images), scale.attack) for each in (trained, network))
    assert found.expected < 0.8 * without.expected
    assert found.robust_accuracy > scale.robust
