"""Why two implementations of adversarial training part within a few steps although each of their steps agrees."""

import keras
import numpy as np

from tests.networks import tiny_images
from tf_robust_sparse import objectives
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.training import RobustModel

RATE, MOMENTUM, STEPS, BATCH = 0.1, 0.9, 3, 16
ATTACK = LinfPGD(8 / 255, 2 / 255, 10, random_start=False)
X, Y = tiny_images(STEPS * BATCH)
TIED = slice(100, 120)  # pixels whose gradient is 0 but for rounding: 5/256 + 2/256 - 7/256 of the same number


class Recorded(objectives.AT):
    def __init__(self):
        super().__init__(ATTACK)
        self.images = []

    def perturb(self, network, x, y, seed=None):
        x_adv = super().perturb(network, x, y, seed=seed)
        self.images.append(np.asarray(x_adv, np.float64).reshape(len(x), -1))
        return x_adv


def weights(tied):
    """Of two dense layers; with `tied` hidden units are triples that answer alike, and tied pixels cancel in each."""
    generator = np.random.default_rng(0)
    kernel, head = generator.normal(0, 0.1, (144, 30)), generator.normal(0, 0.2, (30, 10))
    if tied:
        kernel, head = kernel[:, np.arange(30) // 3], head[np.arange(30) // 3]
        kernel[TIED] = np.tile([5, 2, -7], 10) / 256
    bias = np.full(30, 5.0)  # no unit is off
    return [each.astype(np.float32) for each in (kernel, bias, head, np.zeros(10))]


def gradients(found, x, y):
    """The gradients of the summed cross-entropy, of the weights and the images, in float64."""
    kernel, bias, head, last = found
    hidden = np.maximum(x @ kernel + bias, 0)
    logits = hidden @ head + last
    shares = np.exp(logits - logits.max(1, keepdims=True))
    by_logits = shares / shares.sum(1, keepdims=True) - np.eye(10)[y]
    by_hidden = (by_logits @ head.T) * (hidden > 0)
    return [x.T @ by_hidden, by_hidden.sum(0), hidden.T @ by_logits, by_logits.sum(0)], by_hidden @ kernel.T


def replica(begin, images=None):
    """PyTorch's SGD, `v <- m v + g; w <- w - rate v`, on own adversarial images or on given ones."""
    found = [each.astype(np.float64) for each in begin]
    velocities, own = [np.zeros_like(each) for each in found], []
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        x, y = X[rows].reshape(BATCH, -1).astype(np.float64), Y[rows]
        x_adv = x
        for _ in range(ATTACK.num_steps):
            moved = x_adv + ATTACK.step_size * np.sign(gradients(found, x_adv, y)[1])
            x_adv = np.clip(np.clip(moved, x - ATTACK.epsilon, x + ATTACK.epsilon), 0, 1)
        own.append(x_adv)
        by_weights, _ = gradients(found, x_adv if images is None else images[step], y)
        for number, gradient in enumerate(by_weights):
            velocities[number] = MOMENTUM * velocities[number] + gradient / BATCH
            found[number] = found[number] - RATE * velocities[number]
    return found, own


def trained(begin):
    network = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(30, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    network.set_weights(begin)
    objective = Recorded()
    model = RobustModel(network, objective)
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), run_eagerly=True)
    model.fit(X, Y, BATCH, shuffle=False, verbose=0)
    return network.get_weights(), objective.images


def distance(first, second):
    return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))


def test_three_steps_with_momentum_equal_pytorchs_to_rounding():
    begin = weights(tied=False)
    found, images = trained(begin)
    expected, own = replica(begin)
    np.testing.assert_allclose(images, own, atol=1e-6)
    assert distance(found, expected) < 2e-6 < 1e-2 < distance(found, begin)


def test_signs_of_gradients_of_rounding_size_part_the_weights_and_nothing_else_does():
    """A pixel whose gradient is 0 but for rounding moves a whole step, up here and down or not at all there."""
    begin = weights(tied=True)
    found, images = trained(begin)
    on_own, own = replica(begin)
    on_given, _ = replica(begin, images)
    assert distance(found, on_own) > 1e-4
    assert distance(found, on_given) < 2e-6  # the same images: the optimizer and the gradients are not the cause
    differ = np.abs(images[0] - own[0]) > 1e-4
    assert differ.any() and not np.delete(differ, np.arange(144)[TIED], axis=1).any()
    _, by_pixels = gradients([each.astype(np.float64) for each in begin], X[:BATCH].reshape(BATCH, -1), Y[:BATCH])
    assert np.abs(by_pixels[differ]).max() < 1e-6 * np.abs(by_pixels).max()
