"""What an evaluation builds is freed after it."""

import gc

import keras
import numpy as np
import pytest

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import APGD, LinfPGD, Square
from tf_robust_sparse.evaluation import AutoAttack, RobustnessSuite, evaluate_robustness
from tf_robust_sparse.evaluation.security_curve import security_curve


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).uniform(size=(16, 8, 8, 1)).astype("float32")
    return x, np.arange(16) % 4


def network(kernel):
    """Every function with a gradient written by hand that a network of this kernel calls."""
    dense, convolution = layers.KERNELS[kernel]
    network = [convolution(4, 3, padding="same"), layers.MaxPooling2D(2), keras.layers.Flatten(), dense(4)]
    return keras.Sequential([keras.Input((8, 8, 1)), *network])


def graphs():
    """How many graphs are alive."""
    gc.collect()
    return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())


@pytest.mark.full
@pytest.mark.parametrize("kernel", ["subnet", "binary", "masked", "signed", "rewiring"])
def test_the_graphs_of_an_attack_are_freed(kernel, data):
    x, y = data
    model = network(kernel)

    def evaluate():
        evaluate_robustness(model, (x, y), LinfPGD(0.1, num_steps=2), progress=False)

    evaluate()
    before = graphs()
    evaluate()
    assert graphs() == before


def test_the_graphs_of_an_ensemble_a_suite_and_a_curve_are_freed(data):
    model = network("subnet")
    attacks = [APGD(0.1, num_steps=2), Square(0.1, num_queries=2)]

    def evaluate():
        ensemble = AutoAttack(model, "Linf", 0.1, "custom", attacks, batch_size=16, verbose=False)
        suite = RobustnessSuite(model, data, batch_size=16, progress=False)
        suite.auto_attack("autoattack", ensemble)
        security_curve(model, data, LinfPGD(0.1, num_steps=1), [0.1], progress=False)

    evaluate()
    before = graphs()
    evaluate()
    assert graphs() == before
