import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.data import steps_per_epoch
from tf_robust_sparse.training import sgdw
from tf_robust_sparse.training.learning_rate import Course, tenfold_drops


def two_steps(optimizer):
    theta = keras.Variable([0.5], name="theta")
    optimizer.build([theta])
    seen = []
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant([0.2]), theta)])
        seen.append(float(np.array(theta)[0]))
    return seen


def test_two_steps_are_those_of_the_paper():
    np.testing.assert_allclose(two_steps(sgdw(0.1, 5e-4)), [0.47975, 0.441510125], atol=1e-7)


def test_keras_decay_of_the_ratio_is_the_same_and_of_the_plain_value_is_not():
    ratio = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4 / 0.1)
    np.testing.assert_allclose(two_steps(ratio), [0.47975, 0.441510125], atol=1e-7)
    plain = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4)
    assert two_steps(plain)[0] == pytest.approx(0.479975, abs=1e-7)


def test_schedule_of_the_published_runs():
    steps = steps_per_epoch(50_000, 128) * 200
    schedule = tenfold_drops(0.1, steps)
    rates = [float(schedule(tf.constant(step))) for step in (0, 39_000, 39_001, 58_500, 58_501)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)
    mixed = steps_per_epoch(50_000, 128, auxiliary_batch=64) * 200
    schedule = tenfold_drops(0.1, mixed)
    rates = [float(schedule(tf.constant(step))) for step in (78_100, 78_101, 117_150, 117_151)]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.01, 0.001], rtol=1e-6)


def test_decay_stays_in_proportion_to_the_learning_rate():
    optimizer = sgdw(0.1, 5e-4, total_steps=4)
    theta = keras.Variable([1.0], name="theta")
    optimizer.build([theta])
    shrinkage = []
    for _ in range(4):
        before = float(np.array(theta)[0])
        optimizer.apply_gradients([(tf.constant([0.0]), theta)])
        shrinkage.append(1 - float(np.array(theta)[0]) / before)
    np.testing.assert_allclose(shrinkage, [5e-4, 5e-4, 5e-4, 5e-5], rtol=1e-2)


@pytest.mark.parametrize("decay_bias_and_bn", [True, False])
def test_bias_and_batch_norm_decay_only_if_asked(decay_bias_and_bn):
    optimizer = sgdw(0.1, 0.1, decay_bias_and_bn=decay_bias_and_bn)
    variables = [keras.Variable([1.0], name=name) for name in ("theta", "bias", "gamma", "beta")]
    optimizer.build(variables)
    optimizer.apply_gradients([(tf.constant([0.0]), v) for v in variables])
    rest = 0.9 if decay_bias_and_bn else 1.0
    np.testing.assert_allclose([np.array(v)[0] for v in variables], [0.9, rest, rest, rest], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"momentum": 1.0}, {"total_steps": 0}]
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="Received"):
        sgdw(**{"learning_rate": 0.1, "weight_decay": 5e-4, **arguments})


def test_courses_with_a_warm_up():
    steps = [0, 20, 40, 70, 100]
    cosine = [float(Course(0.2, 100, "cosine", 0.4)(step)) for step in steps]
    np.testing.assert_allclose(cosine, [0, 0.1, 0.2, 0.1, 0], atol=1e-6)
    triangular = [float(Course(0.2, 100, "triangular", 0.4)(step)) for step in steps]
    np.testing.assert_allclose(triangular, [0, 0.1, 0.2, 0.1, 0], atol=1e-6)
    one_cycle = [float(Course(0.2, 100, "one_cycle", 0.4)(step)) for step in steps]
    np.testing.assert_allclose(one_cycle, [0.008, 0.104, 0.2, 0.1, 8e-7], rtol=1e-3)
    again = Course.from_config(Course(0.2, 100, "one_cycle", 0.4).get_config())
    assert float(again(20)) == pytest.approx(0.104)
    optimizer = sgdw(0.2, 5e-4, 100, course="triangular", warmup=0.4, nesterov=True)
    assert optimizer.nesterov and isinstance(optimizer._learning_rate, Course)
    assert not isinstance(sgdw(0.2, 5e-4, 100, course="constant")._learning_rate, Course)
    for arguments, message in (({"course": "no"}, "course='no'"), ({"course": "cosine", "warmup": 1.0}, "warmup=1.0")):
        with pytest.raises(ValueError, match=message):
            sgdw(0.2, 0, 100, **arguments)
