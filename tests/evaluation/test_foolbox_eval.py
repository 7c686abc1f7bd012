import json
import lzma
import os
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.evaluation.conftest import CLASSES, EPSILON
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.evaluation import evaluate_robustness, foolbox_linf_pgd, load_saved_model

# Half a point: two runs of one attack from different random starts.
AGREEMENT = 0.005


def test_foolbox_agrees_with_our_attack(network, examples):
    ours = evaluate_robustness(network, examples, LinfPGD(EPSILON, num_steps=20, restarts=2), progress=False)
    theirs = foolbox_linf_pgd(
        network, examples, epsilon=EPSILON, num_steps=20, restarts=2, batch_size=250, progress=False
    )
    assert theirs["clean_accuracy"] == ours["clean_accuracy"] and theirs["clean_errors"] == ours["clean_errors"]
    assert 0.05 < theirs["robust_accuracy"] < theirs["clean_accuracy"]
    assert abs(theirs["robust_accuracy"] - ours["robust_accuracy"]) <= AGREEMENT
    assert theirs["step_size"] == pytest.approx(2.5 * EPSILON / 20)
    assert theirs["images"] == 1000


def test_protocol_defaults_are_those_of_the_paper(network, examples):
    x = examples[0][:5]
    wrong = (np.argmax(network(x, training=False), -1) + 1) % CLASSES  # so that nothing is left to attack
    result = foolbox_linf_pgd(network, (x, wrong), progress=False)
    assert result["clean_accuracy"] == result["robust_accuracy"] == 0
    assert result["attack"] == "foolbox LinfPGD" and result["epsilon"] == 8 / 255
    assert result["num_steps"] == 50 and result["restarts"] == 10
    assert result["step_size"] == pytest.approx(0.00156863, abs=1e-8)
    assert json.loads(json.dumps(result)) == result


def test_restarts_monotone_and_deterministic(network, examples):
    settings = {"epsilon": EPSILON, "num_steps": 2, "restarts": 4, "max_examples": 150, "progress": False}
    first, second = (foolbox_linf_pgd(network, examples, batch_size=64, **settings) for _ in range(2))
    history = first["robust_accuracy_after_restart"]
    assert history == second["robust_accuracy_after_restart"]
    assert len(history) == 4 and (np.diff(history) <= 0).all() and history[-1] == first["robust_accuracy"]
    other = foolbox_linf_pgd(network, examples, batch_size=64, seed=100, **settings)
    assert other["seed"] == 100 and abs(other["robust_accuracy"] - first["robust_accuracy"]) < 0.1


def test_network_is_traced_once_for_the_attack(network, examples):
    traces = []

    def model(x):
        traces.append(x.shape[0])
        return network(x, training=False)

    foolbox_linf_pgd(model, examples, EPSILON, num_steps=2, restarts=2, max_examples=100, batch_size=32, progress=False)
    assert traces == [32] * 3  # for the clean answers, the zero gradients, and the attack


def test_saved_model_and_progress(network, examples, tmp_path, capsys):
    network.export(str(tmp_path / "serve"), verbose=False)
    loaded = load_saved_model(tmp_path / "serve")
    settings = {"epsilon": EPSILON, "num_steps": 5, "restarts": 2, "max_examples": 200}
    of_loaded = foolbox_linf_pgd(loaded, examples, **settings)
    shown = capsys.readouterr()
    assert "foolbox LinfPGD-5x2" in shown.err and shown.out == ""
    of_network = foolbox_linf_pgd(network, examples, **settings, progress=False)
    assert abs(of_loaded["robust_accuracy"] - of_network["robust_accuracy"]) <= 1 / 200


def test_bad_arguments(network, examples):
    with pytest.raises(ValueError, match="epsilon=8/255"):
        foolbox_linf_pgd(network, examples, epsilon=8)
    with pytest.raises(ValueError, match="`restarts` is an integer, at least 1"):
        foolbox_linf_pgd(network, examples, restarts=0)


def cifar_test_images(folder, count):
    with lzma.open(folder / "cifar10/cifar-10-batches-py/test_batch.xz") as file:
        batch = pickle.load(file, encoding="bytes")
    x = batch[b"data"][:count].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return x.astype("float32") / 255, np.array(batch[b"labels"][:count])


def reference_network(path):
    """The network "A" of the reference weights: two strided convolutions and two dense layers, on normalized pixels."""
    tensors = list(np.load(path).values())
    layers = keras.layers
    network = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Normalization(mean=[0.4914, 0.4824, 0.4467], variance=np.square([0.2471, 0.2435, 0.2616])),
            layers.ZeroPadding2D(1),
            layers.Conv2D(16, 4, strides=2, activation="relu"),
            layers.ZeroPadding2D(1),
            layers.Conv2D(32, 4, strides=2, activation="relu"),
            layers.Permute((3, 1, 2)),
            layers.Flatten(),
            layers.Dense(100, activation="relu"),
            layers.Dense(10),
        ]
    )
    kernels = [t.transpose(2, 3, 1, 0) if t.ndim == 4 else t.T for t in tensors]
    for layer, first in zip([network.layers[i] for i in (2, 4, 7, 8)], range(0, 8, 2), strict=True):
        layer.set_weights(kernels[first : first + 2])
    return network


@pytest.mark.reference_data
@pytest.mark.slow
@pytest.mark.skipif("TRS_DATA_DIR" not in os.environ, reason="TRS_DATA_DIR names no folder of reference data")
def test_robust_cifar_network():
    """Measured elsewhere on the same 1,000 images with PGD, 40 steps, 2 starts: robust accuracy 51.9 at 2/255."""
    folder = Path(os.environ["TRS_DATA_DIR"])
    examples = cifar_test_images(folder, 1000)
    network = reference_network(folder / "robust-weights/cifar_cnn_a_adv.npz")
    ours = evaluate_robustness(network, examples, LinfPGD(2 / 255, num_steps=40, restarts=2), progress=False)
    theirs = foolbox_linf_pgd(network, examples, 2 / 255, num_steps=40, restarts=2, batch_size=250, progress=False)
    assert abs(ours["robust_accuracy"] - theirs["robust_accuracy"]) <= AGREEMENT
    assert abs(ours["robust_accuracy"] - 0.519) <= AGREEMENT
