"""The levels that the specification gives for short training on MNIST."""

import itertools
import os

import numpy as np
import pytest

from tf_robust_sparse import data, evaluation, layers, models, objectives, saving, training
from tf_robust_sparse.attacks import LinfPGD

ROOT = os.environ.get("TRS_DATA_DIR")
pytestmark = [
    pytest.mark.reference_data,
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT, reason="set TRS_DATA_DIR to the folder of the real data sets"),
]


def test_base_and_pruning_on_clean_images():
    images = data.load("mnist", ROOT)
    x, y = np.asarray(images.test_images, "float32") / 255, images.test_labels

    def fit(model, optimizer, epochs):
        batches = data.train_dataset(
            images.train_images, images.train_labels, 64, seed=0, augmentation=None, epochs=epochs
        )
        model.compile(optimizer)
        model.fit(batches, epochs=epochs, steps_per_epoch=937, verbose=0)

    base = models.lenet_conv(seed=0)
    fit(training.RobustModel(base, objectives.Natural()), training.CoupledAdam(1e-3, l2=1e-4, epsilon=1e-8), 2)
    attack = LinfPGD(0.3, 0.01, 40)
    report = evaluation.evaluate_robustness(base, (x[:1000], y[:1000]), attack, progress=False)
    assert report["robust_accuracy"] == 0
    assert evaluation.evaluate_robustness(base, (x, y), [], progress=False)["clean_accuracy"] >= 0.975

    gated = models.lenet_conv(gates=True, seed=1)
    saving.copy_weights(base, gated)
    at_start = float(layers.prior_divergence(gated))
    model = training.NeuralPruningModel(gated, objectives.Natural(), 1 / 60_000)
    active = [1370]
    optimizer = training.GatedAdam(1e-2, l2=1e-4, epsilon=1e-8)
    for _ in range(5):
        fit(model, optimizer, 1)
        active.append(sum(int(layer.active_units()) for layer in layers.gates(gated)))
    assert all(later < earlier for earlier, later in itertools.pairwise(active))
    assert at_start == pytest.approx(9658.4, abs=0.5)
    assert evaluation.evaluate_robustness(gated, (x, y), [], progress=False)["clean_accuracy"] >= 0.985
