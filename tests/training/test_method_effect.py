"""Learned scores do what they are for, on real images: better than magnitude and random masks, and in natural networks.

On 14x14 pixels shortly, and on 28x28: `python -m pytest -m full`.
"""

import collections

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import accuracy, resized
from tf_robust_sparse import data, layers, models, objectives, saving, sparsity
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.sparsity.scores import random_scores
from tf_robust_sparse.training import Phase, PhaseCheck, RobustModel, coupled

Scale = collections.namedtuple("Scale", "size attack steps batch gain epochs")
SHORT, LONG = (
    Scale(14, LinfPGD(0.1, 0.06, 3), 10, 128, 0.1, (6, 3, 3, 5)),
    Scale(28, LinfPGD(0.1, 0.02, 10), 20, 64, 0.2, (8, 4, 4, 8)),
)
TEST = 1000
pytestmark = [pytest.mark.slow, pytest.mark.full]


@pytest.fixture(scope="module", params=[SHORT, LONG], ids=["short", "long"])
def scale(request):
    return request.param


@pytest.fixture(scope="module")
def images(scale):
    return resized(data.load("fashion_mnist_sample").take(2048, TEST), scale.size)


def build(kernel, images, k=1.0):
    network = models.small_cnn(input_shape=images.train_images.shape[1:], kernel=kernel, seed=0)
    if kernel == "subnet":
        sparsity.set_keep_fractions(network, k)
    return network


def model_of(network, phase, objective, rate):
    Phase(phase).begin(network)
    model = RobustModel(network, objective, seed=1)
    model.compile(coupled("sgd", rate, weight_decay=1e-4, momentum=0.9))
    return model


def train(model, scale, images, epochs):
    steps = len(images.train_labels) // scale.batch
    batches = data.train_dataset(
        images.train_images, images.train_labels, scale.batch, seed=1, augmentation=None, epochs=epochs
    )
    check = PhaseCheck(model.network)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=[check])
    return model.network


def robust(network, images, steps):
    return accuracy(network, images, LinfPGD(0.1, 0.25 / steps, steps, seed=0))


def trades(scale):
    return objectives.TRADES(scale.attack, beta=6.0, start="uniform")


@pytest.fixture(scope="module")
def dense(scale, images):
    return train(model_of(build("plain", images), "pretrain", trades(scale), 0.05), scale, images, scale.epochs[0])


def pruned_from(source, images, k):
    network = build("subnet", images, k)
    saving.copy_weights(source, network)
    sparsity.scaled_scores(network)
    return network


@pytest.mark.full
def test_learned_scores_against_magnitudes_and_chance(scale, dense, images):
    k, accuracies = 0.05, {}
    learned = pruned_from(dense, images, k)
    train(model_of(learned, "prune", trades(scale), 0.1), scale, images, scale.epochs[1])
    for layer, source in zip(layers.kernel_layers(learned), layers.kernel_layers(dense), strict=True):
        np.testing.assert_array_equal(layer.kernel, source.kernel)  # the prune phase changes no kernel
    networks = {"learned": learned, "magnitude": pruned_from(dense, images, k), "random": pruned_from(dense, images, k)}
    random_scores(networks["random"], seed=3)
    network = pruned_from(dense, images, k)
    model = model_of(network, "finetune", trades(scale), 0.02)
    begin = [np.array(variable) for variable in model.optimizer.variables]
    for name, source in networks.items():  # in one model, which is compiled once
        network.set_weights(source.get_weights())
        for variable, value in zip(model.optimizer.variables, begin, strict=True):
            variable.assign(value)
        train(model, scale, images, scale.epochs[2 if name == "learned" else 3])
        assert sparsity.statistics.connectivity(network) == pytest.approx(k, abs=1e-3)
        accuracies[name] = robust(network, images, scale.steps)
    error = np.sqrt(0.25 / TEST)  # of an accuracy on so many images, at most
    assert accuracies["learned"] >= accuracies["magnitude"] - 0.01, accuracies
    assert accuracies["learned"] > accuracies["random"] + 3 * error, accuracies


def test_a_natural_network_holds_a_robust_sub_network(scale, images):
    natural = train(model_of(build("plain", images), "pretrain", objectives.Natural(), 0.05), scale, images, 4)
    network = pruned_from(natural, images, 0.5)
    train(model_of(network, "prune", trades(scale), 0.1), scale, images, 12)
    for layer, source in zip(layers.kernel_layers(network), layers.kernel_layers(natural), strict=True):
        kernel = tf.convert_to_tensor(source.kernel)
        np.testing.assert_array_equal(layer.kernel, kernel)
        np.testing.assert_array_equal(layer.effective_kernel, tf.where(layer.compute_kernel_mask(), kernel, 0))
    before, after = (robust(each, images, scale.steps) for each in (natural, network))
    assert before < 0.2 and after > before + scale.gain, (before, after)
