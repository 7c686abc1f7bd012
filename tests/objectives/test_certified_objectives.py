"""Training by bounds: schedules, losses by hand, what a step sees, and what it is worth."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.certify.bounded_networks import GOLDEN, LABEL, POINT
from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import certify, data, layers, models, objectives, sparsity
from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.certify import bounds
from tf_robust_sparse.certify.smoothing import SmoothingMonitor
from tf_robust_sparse.training import Phase, RobustModel

X, Y = tiny_images(8)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (objectives.LinearEpsilon(0.007, 0, 59_000), {1e3: 1.18644e-4, 1e4: 1.18644e-3, 3e4: 3.55932e-3, 59e3: 7e-3}),
        (
            objectives.SmoothedEpsilon(0.1, 0, 1000),
            {0: 0, 100: 1.9692e-4, 250: 7.69231e-3, 500: 3.846154e-2, 1000: 0.1, 5000: 0.1},
        ),
        (objectives.LinearEpsilon(0.2, 10, 20, start=0.1), {0: 0.1, 10: 0.1, 15: 0.15, 20: 0.2, 99: 0.2}),
        (objectives.LinearEpsilon(0.2, 0, 0), {0: 0.2, 7: 0.2}),
        (objectives.EpsilonSchedule(0.3), {0: 0.3, 10**6: 0.3}),
        (
            objectives.EpochwiseEpsilon(0.1, 10, 7),
            {0: 0, 6: 0, 7: 0.01, 34: 0.04, 35: 0.05, 69: 0.09, 70: 0.1, 700: 0.1},
        ),
        (objectives.EpochwiseEpsilon(0.1, 0, 7, start=0.05), {0: 0.1, 100: 0.1}),
    ],
)
def test_radius_by_steps(schedule, expected):
    for step, epsilon in expected.items():
        found = schedule(tf.constant(int(step), tf.int64))
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, epsilon, rtol=1e-4, atol=1e-9)


def test_a_smoothed_schedule_never_falls_and_its_halves_meet_with_one_slope():
    schedule = objectives.SmoothedEpsilon(0.3, 50, 450, start=0.05)
    radii = np.array([float(schedule(tf.constant(step))) for step in range(500)])
    assert (np.diff(radii) >= 0).all() and radii[50] == np.float32(0.05) and radii[450] == np.float32(0.3)
    slopes = np.diff(radii[140:161])
    assert np.abs(np.diff(slopes)).max() < 0.05 * slopes.max()


def test_golden_robust_losses():
    linear = objectives.CrownIBP(0.2, final_beta=1.0)
    np.testing.assert_allclose(linear.loss(GOLDEN, POINT, LABEL, POINT)[0], [1.190349], atol=1e-5)
    symbolic = objectives.MixTrain(objectives.EpochwiseEpsilon(0.2, 0, 1), weight=1.0, probability=1.0)
    losses, logits, *_ = symbolic.loss(GOLDEN, POINT, LABEL, POINT)
    np.testing.assert_allclose(losses - cross_entropy(LABEL, logits), [1.094543], atol=1e-5)


@pytest.mark.parametrize("step", [0, 2, 9, *(pytest.param(step, marks=pytest.mark.full) for step in (1, 3, 4))])
def test_the_mixture_at_each_step(step):
    """beta falls from 1 to its last value as the radius grows, kappa likewise."""
    network = tiny_network("plain", batch_norm=False)
    schedule = objectives.LinearEpsilon(0.04, 0, 4)
    epsilon = 0.04 * min(step / 4, 1)
    share = epsilon / 0.04
    beta, kappa = 1 - share * (1 - 0.25), 1 - share * (1 - 0.5)
    linear, interval = (
        bounds.training_margins(network, X, Y, epsilon, method).numpy() for method in ("crown-ibp", "ibp")
    )
    mixed = beta * linear + (1 - beta) * interval
    robust = np.log(1 + np.exp(-mixed).sum(1))
    clean = cross_entropy(Y, network(X)).numpy()
    now = objectives.CrownIBP(schedule, 0.25, 0.5).at_step(tf.constant(step, tf.int64))
    losses, logits, *_ = now.loss(network, X, Y, X)
    np.testing.assert_allclose(losses, kappa * clean + (1 - kappa) * robust, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, network(X), atol=1e-6)
    without = objectives.CrownIBP(schedule, 0.25).at_step(tf.constant(step, tf.int64))
    np.testing.assert_allclose(without.loss(network, X, Y, X)[0], robust, rtol=1e-4, atol=1e-5)
    by_interval = objectives.IBP(schedule, 0.5).at_step(tf.constant(step, tf.int64)).loss(network, X, Y, X)[0]
    expected = kappa * clean + (1 - kappa) * np.log(1 + np.exp(-interval).sum(1))
    np.testing.assert_allclose(by_interval, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [objectives.CrownIBP, objectives.IBP])
def test_without_a_radius_the_loss_is_the_cross_entropy(objective):
    network = tiny_network("plain", batch_norm=False)
    now = objective(objectives.LinearEpsilon(0.1, 0, 10)).at_step(tf.constant(0))
    losses, logits, *_ = now.loss(network, X, Y, X)
    np.testing.assert_allclose(losses, cross_entropy(Y, logits), atol=1e-5)


def test_without_a_backward_pass_the_bounds_are_intervals():
    network = tiny_network("plain", batch_norm=False)
    found = bounds.mixed_margins(network, X, Y, 0.02, 1e-6)
    np.testing.assert_array_equal(found, bounds.training_margins(network, X, Y, 0.02, "ibp"))


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(objectives.CrownIBP(0.02, final_beta=0.5), marks=pytest.mark.full),
        objectives.IBP(0.02),
        pytest.param(
            objectives.MixTrain(objectives.EpochwiseEpsilon(0.02, 0, 4), probability=1.0), marks=pytest.mark.full
        ),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_scores_learn_under_bounds_and_kernels_stand_still(objective):
    network = tiny_network("subnet", batch_norm=False)
    sparsity.set_keep_fractions(network, dict.fromkeys(["conv1", "conv2", "classifier"], 0.5))
    Phase("prune").begin(network)
    model = RobustModel(network, objective)
    model.compile(keras.optimizers.Adam(1e-2))
    before = {variable.path: np.array(variable) for variable in network.variables}
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    for layer in layers.kernel_layers(network):
        assert (before[layer.scores.path] != np.asarray(layer.scores)).mean() > 0.1
        np.testing.assert_array_equal(before[layer.kernel.path], layer.kernel)


def test_a_step_of_training_sees_its_radius():
    """In the first step the radius is 0 and the loss the clean one; later it is not."""
    model = RobustModel(
        tiny_network("plain", batch_norm=False), objectives.CrownIBP(objectives.LinearEpsilon(0.1, 0, 3))
    )
    model.compile(keras.optimizers.SGD(0.0))
    losses = [model.train_on_batch(X, Y) for _ in range(5)]
    clean = float(tf.reduce_mean(cross_entropy(Y, model.network(X))))
    assert losses[0] == pytest.approx(clean, abs=1e-5)
    full = certify.margins(model.network, X, Y, 0.1, "ibp").numpy()
    # train_on_batch reports the running mean.
    assert 5 * losses[4] - 4 * losses[3] == pytest.approx(np.log(1 + np.exp(-full).sum(1)).mean(), rel=1e-3)


def test_weights_of_mixtrain_by_epochs():
    objective = objectives.MixTrain(objectives.EpochwiseEpsilon(0.1, 10, 3))
    expected = {0: 0.1, 10: 0.1, 14: 0.1, 15: 0.25, 20: 0.625, 25: 1.5625, 40: 24.414, 45: 50, 100: 50}
    for epoch, weight in expected.items():
        for step in (3 * epoch, 3 * epoch + 2):
            np.testing.assert_allclose(objective.weight_at(tf.constant(step)), weight, rtol=1e-4)


def test_without_probability_mixtrain_is_natural_training():
    states = []
    for objective in (
        objectives.Natural(),
        objectives.MixTrain(objectives.EpochwiseEpsilon(0.1, 0, 1), probability=0.0),
    ):
        model = RobustModel(tiny_network("plain", batch_norm=False), objective)
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0, shuffle=False)
        states.append(model.network.get_weights())
    for first, second in zip(*states, strict=True):
        np.testing.assert_array_equal(first, second)


def test_mixtrain_bounds_in_most_steps_and_draws_by_its_seed():
    objective = objectives.MixTrain(objectives.EpochwiseEpsilon(0.2, 0, 1000), weight=1.0, probability=0.8)
    points = tf.constant(np.random.default_rng(0).random((5, 2)), tf.float32)
    labels = tf.constant([0, 1, 1, 0, 1])

    @tf.function(autograph=False)
    def extra(step):
        now = objective.at_step(step, tf.stack([3, step]))
        losses, logits, *_ = now.loss(GOLDEN, points, labels, points)
        return (losses - cross_entropy(labels, logits))[0]

    found = np.array([float(extra(tf.constant(step))) for step in range(300)])
    assert (np.abs(found) > 1e-5).mean() == pytest.approx(0.8, abs=0.07)
    one_by_one = np.log(1 + np.exp(-bounds.training_margins(GOLDEN, points, labels, 0.2, "zonotope").numpy()).sum(1))
    drawn = np.abs(found[np.abs(found) > 1e-5][:, None] - one_by_one)
    assert drawn.min(1).max() < 1e-4 and set(drawn.argmin(1)) == set(range(5))
    assert found[7] == float(extra(tf.constant(7)))


@pytest.mark.parametrize("method", ["ibp", pytest.param("crown", marks=pytest.mark.full)])
def test_validation_counts_what_is_verified(method):
    network = tiny_network("rewiring", batch_norm=False)
    images, _ = tiny_images(12, seed=4)
    labels = network(images).numpy().argmax(1)
    rows = certify.verify_images(network, images, labels, 0.01, method, tight=False)
    expected = np.mean([row.verified for row in rows])
    assert 0 < expected < 1
    model = RobustModel(
        network,
        objectives.Natural(),
        validation_checks={"verified_accuracy": certify.Verifier(0.01, method, tight=False)},
    )
    model.compile()
    found = model.evaluate(images, labels, batch_size=5, return_dict=True, verbose=0)
    assert found["verified_accuracy"] == pytest.approx(expected, abs=1e-6)
    assert "verified_accuracy" not in model.fit(images, labels, verbose=0).history


def test_validation_estimates_smoothing():
    network = tiny_network("plain", batch_norm=False)
    labels = network(X).numpy().argmax(1)
    seed = tf.constant([1, 2])
    everything = SmoothingMonitor(1e-4)(network, X, labels, seed).numpy()
    assert everything.all()
    assert not SmoothingMonitor(1e-4, radius=1.0)(network, X, labels, seed).numpy().any()
    wrong = (labels + 1) % 10
    assert not SmoothingMonitor(1e-4)(network, X, wrong, seed).numpy().any()
    noisy = SmoothingMonitor(2.0)(network, X, labels, seed).numpy()
    assert not noisy.all()
    model = RobustModel(network, objectives.Natural(), validation_checks={"smoothed_accuracy": SmoothingMonitor(1e-4)})
    model.compile()
    assert model.evaluate(X, labels, return_dict=True, verbose=0)["smoothed_accuracy"] == 1.0


@pytest.mark.full
@pytest.mark.parametrize(("side", "least"), [(14, 0.05), (28, 0.15)])
def test_training_by_bounds_verifies_what_natural_training_cannot(side, least):
    """Verified <= PGD <= clean, image by image, on both, of images of half the size and of the whole."""
    from tf_robust_sparse.attacks import LinfPGD

    epsilon = 0.05
    images = data.load("fashion_mnist_sample").take(2000, 200, seed=0)

    def shrunk(x, y):
        return tf.nn.avg_pool2d(x, 28 // side, 28 // side, "VALID"), y

    train = data.test_dataset(images.train_images, images.train_labels, 100).map(shrunk)
    ((x, y),) = data.test_dataset(images.test_images, images.test_labels, 200).map(shrunk).as_numpy_iterator()
    attack = LinfPGD(epsilon, 0.02, 5)
    shares = {}
    for name, objective in (
        ("natural", objectives.Natural()),
        ("bounds", objectives.CrownIBP(objectives.LinearEpsilon(epsilon, 0, 60))),
    ):
        network = models.small_cnn(num_classes=10, input_shape=(side, side, 1), seed=0)
        model = RobustModel(network, objective)
        model.compile(keras.optimizers.Adam(2e-3))
        model.fit(train, epochs=5, verbose=0)
        clean = network(x).numpy().argmax(1) == y
        attacked = network(attack(network, x, y, seed=1)).numpy().argmax(1) == y
        verified = certify.Verifier(epsilon, "ibp")(network, x, y).numpy()
        linear = certify.Verifier(epsilon, "crown-ibp")(network, x, y).numpy()
        for proven in (verified, linear):
            assert not (proven & ~attacked).any() and not (proven & ~clean).any()
        shares[name] = verified.mean()
    assert shares["natural"] < 0.02 and shares["bounds"] > least


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.EpsilonSchedule(0), "pass for example 2 / 255"),
        (lambda: objectives.LinearEpsilon(0.1, -1, 5), "begin_step=-1"),
        (lambda: objectives.LinearEpsilon(0.1, 0, 5, start=0.2), "start=0.2"),
        (lambda: objectives.SmoothedEpsilon(0.1, 0, 5, middle=1.0), "middle=1.0"),
        (lambda: objectives.EpochwiseEpsilon(0.1, 3, 0), "steps_per_epoch=0"),
        (lambda: objectives.CrownIBP(1.5), "epsilon=1.5"),
        (lambda: objectives.CrownIBP(0.1, final_beta=2), "final_beta=2"),
        (lambda: objectives.CrownIBP(0.1, final_beta=None), "final_beta=None"),
        (lambda: objectives.CrownIBP(0.1, final_kappa=-1), "final_kappa=-1"),
        (lambda: objectives.CrownIBP(0.1, slope="steep"), "slope='steep'"),
        (lambda: objectives.MixTrain(0.1), "EpochwiseEpsilon"),
        (lambda: objectives.MixTrain(objectives.EpochwiseEpsilon(0.1, 1, 1), num_images=0), "num_images=0"),
        (lambda: objectives.MixTrain(objectives.EpochwiseEpsilon(0.1, 1, 1), weight=-1), "weight=-1"),
        (lambda: objectives.MixTrain(objectives.EpochwiseEpsilon(0.1, 1, 1), probability=2), "probability=2"),
        (lambda: certify.Verifier(0.0), "epsilon=0.0"),
        (lambda: certify.Verifier(0.1, "milp"), "must be one of"),
        (lambda: SmoothingMonitor(0), "sigma=0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_without_bounds_is_refused_before_training():
    inputs = keras.Input((12, 12, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(3, 3, activation="tanh", name="curved")(inputs))
    model = RobustModel(keras.Model(inputs, keras.layers.Dense(10)(x)), objectives.CrownIBP(0.1))
    model.compile()
    with pytest.raises(ValueError, match="tanh of curved"):
        model.fit(X, Y, verbose=0)
