"""Weight decay in the gradient, against the formulas and PyTorch's optimizers."""

import keras
import numpy as np
import pytest

from tf_robust_sparse.training import CoupledSGD, PerEpoch, coupled
from tf_robust_sparse.training.by_epoch import epoch_rates
from tf_robust_sparse.training.optimizers import CoupledAdam, CoupledRMSprop

GRADIENTS = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


def run(optimizer):
    weight = keras.Variable(np.linspace(-1, 1, 5, dtype="float32"))
    optimizer.build([weight])
    for gradient in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    return keras.ops.convert_to_numpy(weight)


class PyTorch:
    """PyTorch's updates of one tensor, in double precision."""

    def __init__(self, rate, decay=0.05):
        self.rate, self.decay, self.step, self.slots = rate, decay, 0, {}

    def slot(self, name, value=0.0):
        return self.slots.get(name, value)

    def adam(self, w, g, beta_1=0.9, beta_2=0.999, epsilon=1e-8, amsgrad=False):
        self.step, g = self.step + 1, g + self.decay * w
        m = self.slots["m"] = beta_1 * self.slot("m") + (1 - beta_1) * g
        v = self.slots["v"] = beta_2 * self.slot("v") + (1 - beta_2) * g**2
        if amsgrad:
            v = self.slots["highest"] = np.maximum(v, self.slot("highest"))
        denominator = np.sqrt(v) / np.sqrt(1 - beta_2**self.step) + epsilon
        return w - self.rate / (1 - beta_1**self.step) * m / denominator

    def rmsprop(self, w, g, alpha=0.99, epsilon=1e-8, momentum=0.0, centered=False):
        g = g + self.decay * w
        v = self.slots["v"] = alpha * self.slot("v") + (1 - alpha) * g**2
        if centered:
            mean = self.slots["mean"] = alpha * self.slot("mean") + (1 - alpha) * g
            v = v - mean**2
        step = g / (np.sqrt(v) + epsilon)
        if momentum:
            step = self.slots["step"] = momentum * self.slot("step") + step
        return w - self.rate * step


def both(name, scale=1.0, decay=0.05, rate=0.1, **settings):
    """Runs ours and the replica on gradients of this size, the rate changing once on the way."""
    ours = {"adam": CoupledAdam, "rmsprop": CoupledRMSprop}[name](rate, l2=decay, **settings)
    replica, expected = PyTorch(rate, decay), np.linspace(-1, 1, 5).astype("float64")
    weight = keras.Variable(expected.astype("float32"))
    ours.build([weight])
    for number, gradient in enumerate(GRADIENTS):
        if number == 3:
            ours.learning_rate = replica.rate = rate / 10
        theirs = {"alpha" if key == "rho" else key: value for key, value in settings.items()}
        expected = getattr(replica, name)(expected, scale * gradient.astype("float64"), **theirs)
        ours.apply([keras.ops.convert_to_tensor(scale * gradient)], [weight])
    return keras.ops.convert_to_numpy(weight), expected


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adam", {}),
        ("adam", {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "amsgrad": True}),
        ("rmsprop", {}),
        ("rmsprop", {"momentum": 0.9}),
        ("rmsprop", {"rho": 0.9, "momentum": 0.5, "epsilon": 1e-3, "centered": True}),
    ],
)
def test_steps_are_those_of_pytorch(name, settings):
    found, expected = both(name, **settings)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_epsilon_acts_where_gradients_are_small(name):
    """Gradients of 1e-8, as large as epsilon: its place decides how far a weight moves."""
    found, expected = both(name, scale=1e-8, decay=0.0)
    moved, should_move = found - np.linspace(-1, 1, 5, dtype="float32"), expected - np.linspace(-1, 1, 5)
    np.testing.assert_allclose(moved, should_move, rtol=1e-3, atol=1e-6)
    assert np.abs(should_move).max() > 0.01


def test_epsilon_of_tensorflow_on_demand():
    optimizers = CoupledAdam(0.1, epsilon=1e-3, corrected_epsilon=False), keras.optimizers.Adam(0.1, epsilon=1e-3)
    ours, theirs = (run(optimizer) for optimizer in optimizers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert np.abs(run(CoupledAdam(0.1, epsilon=1e-3)) - theirs).max() > 1e-3


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_defaults_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    more = {} if name == "adam" else {"momentum": 0.9}
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[name]
    reference = make([weight], lr=0.1, weight_decay=0.05, **more)
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient.copy())
        reference.step()
    np.testing.assert_allclose(run(coupled(name, 0.1, 0.05, 0.9)), weight.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_decay_is_in_the_momentum():
    weight, velocity = np.linspace(-1, 1, 5), np.zeros(5)
    for gradient in GRADIENTS:
        velocity = 0.9 * velocity - 0.1 * (gradient + 0.05 * weight)
        weight = weight + velocity
    np.testing.assert_allclose(run(coupled("sgd", 0.1, 0.05, 0.9)), weight, rtol=1e-5)


def test_configuration_round_trip():
    for optimizer in (
        coupled("sgd", 0.1, 0.05, 0.8),
        CoupledAdam(0.1, 0.5, l2=0.05),
        CoupledRMSprop(0.1, 0.8, l2=0.05),
    ):
        again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert type(again) is type(optimizer) and again.get_config() == optimizer.get_config()


def test_bad_arguments_of_optimizers():
    with pytest.raises(ValueError, match="one of sgd, adam, rmsprop"):
        coupled("lion", 0.1)
    with pytest.raises(ValueError, match="`l2` is the strength"):
        coupled("sgd", 0.1, -1.0)


def test_published_rates():
    reference = epoch_rates("cosine_ref", 0.1, 100)
    assert [reference[e] for e in (0, 1, 50, 99)] == pytest.approx([0.0999753, 0.1, 0.0515705, 9.866e-5], rel=1e-4)
    cosine = epoch_rates("cosine", 0.1, 100)
    assert cosine[0] == 0.1 and cosine[50] == pytest.approx(0.05) and cosine == sorted(cosine, reverse=True)
    step = epoch_rates("step", 1.0, 20)
    assert (
        step[:15] == [1.0] * 15 and step[15:18] == pytest.approx([0.1] * 3) and step[18:] == pytest.approx([0.01] * 2)
    )
    assert epoch_rates("constant", 0.3, 2, warmup_epochs=2, warmup_rate=0.01) == [0.01, 0.01, 0.3, 0.3]
    assert epoch_rates("cosine", 0.3, 2, warmup_epochs=1)[:2] == [0.3, 0.3]


def test_rates_hold_for_an_epoch():
    schedule = PerEpoch([0.3, 0.2, 0.1], 4)
    found = [float(schedule(step)) for step in (0, 3, 4, 7, 8, 11, 12, 100)]
    assert found == pytest.approx([0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1])
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert float(again(5)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "arguments", [("sine", 0.1, 1), ("step", 0, 1), ("step", 0.1, 0), ("step", 0.1, 1, -1), ("step", 0.1, 1, 1, 0.0)]
)
def test_bad_rates(arguments):
    with pytest.raises(ValueError, match=r"schedule"):
        epoch_rates(*arguments)
    with pytest.raises(ValueError, match="at least one learning rate"):
        PerEpoch([], 1)


def test_batch_norm_is_left_without_decay_on_demand():
    norm = keras.layers.BatchNormalization()
    norm.build((None, 3))
    optimizer = CoupledSGD(0.1, l2=0.5, decay_batch_norm=False)
    dense = keras.layers.Dense(2, kernel_initializer="ones")
    dense.build((None, 3))
    weights = [*norm.trainable_variables, *dense.trainable_variables]
    optimizer.apply([keras.ops.zeros(weight.shape) for weight in weights], weights)
    np.testing.assert_array_equal(norm.gamma, np.ones(3))
    np.testing.assert_allclose(dense.kernel, np.full((3, 2), 0.95), rtol=1e-6)
