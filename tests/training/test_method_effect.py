"""Learnt scores do what they are for, on real images: beside magnitude and random masks, and in natural networks."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import data, layers, models, objectives, saving, sparsity
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.evaluation import evaluate_robustness
from tf_robust_sparse.training import Phase, PhaseCheck, RobustModel, coupled

ATTACK = LinfPGD(0.1, 0.02, 10)
BATCH, TEST = 64, 1000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    return data.load("fashion_mnist_sample").take(2048, TEST)


def build(kernel, k=1.0):
    network = models.small_cnn(input_shape=(28, 28, 1), kernel=kernel, seed=0)
    if kernel == "subnet":
        sparsity.set_keep_fractions(network, k)
    return network


def train(network, phase, images, objective, epochs, rate, seed=1):
    Phase(phase).begin(network)
    model = RobustModel(network, objective, seed=seed)
    steps = len(images.train_labels) // BATCH
    model.compile(coupled("sgd", rate, weight_decay=1e-4, momentum=0.9))
    batches = data.train_dataset(
        images.train_images, images.train_labels, BATCH, seed=seed, augmentation=None, epochs=epochs
    )
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=[PhaseCheck(network)])
    return network


def robust(network, images, steps=20):
    batches = data.test_dataset(images.test_images, images.test_labels, 250)
    report = evaluate_robustness(network, batches, [LinfPGD(0.1, 0.25 / steps, steps, seed=0)])
    return report["robust_accuracy"]


def trades():
    return objectives.TRADES(ATTACK, beta=6.0, start="uniform")


@pytest.fixture(scope="module")
def dense(images):
    return train(build("plain"), "pretrain", images, trades(), 8, 0.05)


def pruned_from(source, k):
    network = build("subnet", k)
    saving.copy_weights(source, network)
    sparsity.scaled_scores(network)
    return network


def test_learnt_scores_beside_magnitudes_and_chance(dense, images):
    k, accuracies = 0.05, {}
    learnt = pruned_from(dense, k)
    train(learnt, "prune", images, trades(), 4, 0.1)
    for layer, source in zip(layers.kernel_layers(learnt), layers.kernel_layers(dense), strict=True):
        np.testing.assert_array_equal(layer.kernel, source.kernel)  # the prune phase changes no kernel
    networks = {"learnt": learnt, "magnitude": pruned_from(dense, k), "random": pruned_from(dense, k)}
    sparsity.random_scores(networks["random"], seed=3)
    for name, network in networks.items():
        train(network, "finetune", images, trades(), 4 if name == "learnt" else 8, 0.02)
        assert sparsity.statistics.connectivity(network) == pytest.approx(k, abs=1e-3)
        accuracies[name] = robust(network, images)
    error = np.sqrt(0.25 / TEST)  # of an accuracy on so many images, at most
    assert accuracies["learnt"] >= accuracies["magnitude"] - 0.01, accuracies
    assert accuracies["learnt"] > accuracies["random"] + 3 * error, accuracies


def test_a_natural_network_holds_a_robust_sub_network(images):
    natural = train(build("plain"), "pretrain", images, objectives.Natural(), 4, 0.05)
    network = pruned_from(natural, 0.5)
    train(network, "prune", images, trades(), 12, 0.1)
    for layer, source in zip(layers.kernel_layers(network), layers.kernel_layers(natural), strict=True):
        kernel = tf.convert_to_tensor(source.kernel)
        np.testing.assert_array_equal(layer.kernel, kernel)
        np.testing.assert_array_equal(layer.effective_kernel, tf.where(layer.compute_kernel_mask(), kernel, 0))
    before, after = robust(natural, images), robust(network, images)
    assert before < 0.2 and after > before + 0.2, (before, after)
