"""Weight decay in the gradient, against the formulas and PyTorch's optimizers."""

import keras
import numpy as np
import pytest

from tf_robust_sparse.training import CoupledSGD, PerEpoch, coupled, epoch_rates

GRADIENTS = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


def run(optimizer):
    weight = keras.Variable(np.linspace(-1, 1, 5, dtype="float32"))
    optimizer.build([weight])
    for gradient in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    return keras.ops.convert_to_numpy(weight)


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_steps_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    make = {
        "sgd": lambda: torch.optim.SGD([weight], 0.1, momentum=0.9, weight_decay=0.05),
        "adam": lambda: torch.optim.Adam([weight], 0.1, weight_decay=0.05, eps=1e-7),
        "rmsprop": lambda: torch.optim.RMSprop([weight], 0.1, alpha=0.9, momentum=0.9, weight_decay=0.05, eps=0),
    }
    reference = make[name]()
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient.copy())
        reference.step()
    np.testing.assert_allclose(run(coupled(name, 0.1, 0.05, 0.9)), weight.detach().numpy(), rtol=2e-4, atol=1e-4)


def test_decay_is_in_the_momentum():
    weight, velocity = np.linspace(-1, 1, 5), np.zeros(5)
    for gradient in GRADIENTS:
        velocity = 0.9 * velocity - 0.1 * (gradient + 0.05 * weight)
        weight = weight + velocity
    np.testing.assert_allclose(run(coupled("sgd", 0.1, 0.05, 0.9)), weight, rtol=1e-5)


def test_configuration_round_trip():
    optimizer = coupled("sgd", 0.1, 0.05, 0.8)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, CoupledSGD) and again.l2 == 0.05 and again.momentum == 0.8


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
