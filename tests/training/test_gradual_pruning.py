"""Stages that keep less and less, and a robust binary sub-network that learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_dataset, tiny_network
from tf_robust_sparse import models, objectives, sparsity
from tf_robust_sparse.data import load
from tf_robust_sparse.models import resnet
from tf_robust_sparse.sparsity.scores import subnet_layers
from tf_robust_sparse.training import Phase, RobustModel, coupled
from tf_robust_sparse.training.by_epoch import gradual_rates
from tf_robust_sparse.training.gradual_pruning import GradualPruning, Reweighting


class Forgetful:
    def __init__(self):
        self.state = {"best": {"best_robust": 1}}


def test_fewer_connections_in_each_stage_are_those_the_step_sees():
    network = tiny_network("signed")
    Phase("prune").begin(network)
    seen, forgotten = [], []
    checkpoints = Forgetful()

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((sparsity.statistics.nonzero(network), logs["loss"]))
            forgotten.append(dict(checkpoints.state["best"]))

    def fractions(rate):
        return sparsity.keep_fractions(network, rate, "adaptive", 0.3)

    gradual = GradualPruning(gradual_rates(0.04, 4, 2), fractions, checkpoints)
    traces = []
    objective = objectives.Natural()
    loss = objective.loss
    objective.loss = lambda *args: traces.append(1) or loss(*args)
    model = RobustModel(network, objective)
    model.compile(coupled("sgd", 0.1, 5e-4))
    model.fit(tiny_dataset(), validation_data=tiny_dataset(), epochs=4, callbacks=[gradual, Count()], verbose=0)
    counts = [count for count, _ in seen]
    entries = sum(int(np.prod(layer.scores.shape)) for layer in subnet_layers(network))
    assert counts[0] == counts[1] and counts[2] == counts[3]
    assert counts[0] == pytest.approx(0.2 * entries, abs=4) and counts[3] == pytest.approx(0.04 * entries, abs=4)
    assert forgotten == [{"best_robust": 1}] * 2 + [{}] * 2
    assert len(traces) <= 4  # the training step twice, Keras' own look at each included


def test_weights_of_examples_wait_for_their_epoch():
    objective = objectives.Reweighted(objectives.Natural(), "prob")
    callback = Reweighting(objective, 2)
    active = []
    for epoch in range(4):
        callback.on_epoch_begin(epoch)
        active.append(bool(objective.active.numpy()))
    assert active == [False, False, True, True]


@pytest.mark.full
@pytest.mark.parametrize(
    ("short", "rate", "at_20", "at_40"),
    [
        (True, 0.3, 0.5, 0.85),
        pytest.param(False, 0.3, 0.85, 0.95, marks=pytest.mark.full),
        pytest.param(False, 0.1, 0.0, 0.85, marks=pytest.mark.full),
    ],
)
def test_scores_alone_fit_a_batch(short, rate, at_20, at_40, monkeypatch):
    """A fixed random network of signs learns 64 images by choosing connections; without learning it does not."""
    images = load("fashion_mnist_sample")
    where = np.concatenate([np.flatnonzero(images.train_labels == label)[:7] for label in range(10)])[:64]
    x = np.repeat(np.asarray(images.train_images[where], "float32") / 255, 3, -1)
    y = images.train_labels[where]
    if short:
        monkeypatch.setitem(resnet._BLOCKS, 18, (resnet._basic, (1, 1, 1, 0)))
        x = x[:, ::2, ::2]
    keras.utils.set_random_seed(1)
    variant = models.Variant(None, affine_batch_norm=False, classifier_bias=False, final_batch_norm=True)
    network = models.build("resnet18_p01", kernel="signed", input_shape=x.shape[1:], seed=1, variant=variant)
    sparsity.uniform_scores(network, 0.01, seed=1)
    sparsity.set_keep_fractions(network, sparsity.keep_fractions(network, rate, "adaptive", 0.1))
    Phase("prune").begin(network)
    optimizer = coupled("sgd", 0.1, 5e-4)
    optimizer.build(network.trainable_variables)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            logits = network(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss, tf.reduce_mean(tf.cast(tf.argmax(logits, -1) == y, tf.float32))

    optimizer.learning_rate = 0.0
    untrained = [[float(value) for value in step()] for _ in range(3)]
    assert np.ptp([loss for loss, _ in untrained]) < 1e-5 and max(accuracy for _, accuracy in untrained) < 0.25
    optimizer.learning_rate = 0.1

    losses, accuracies = zip(*[[float(value) for value in step()] for _ in range(41)], strict=True)
    assert 2.2 < losses[0] < 3
    assert accuracies[20] >= at_20 and accuracies[40] >= at_40
    assert accuracies[0] < 0.25
