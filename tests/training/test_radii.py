"""Attacks and steps that follow a radius which changes by epoch."""

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, objectives
from tf_robust_sparse.training import RobustModel, coupled

X, Y = tiny_images(16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.AT(attacks.LinfPGD(0.1, 0.04, 3)),
        lambda: objectives.AT(attacks.LinfPGD(0.1, 0.04, 3, keep_best=True)),
        lambda: objectives.MART(attacks.L2PGD(1.0, 0.4, 3)),
    ],
)
def test_the_attack_is_that_of_the_radius_of_the_step(make):
    plain = make()
    share = (0.0, 0.5, 1.0)
    radii = tuple(plain.attack.epsilon * each for each in share)
    scheduled = objectives.ScheduledRadius(plain, objectives.TabledEpsilon(radii, steps_per_epoch=4))
    network = tiny_network("plain")

    @tf.function(autograph=False)
    def found(step):
        return scheduled.at_step(step).perturb(network, X, Y, seed=(1, 2))

    for step, part in ((0, 0.0), (3, 0.0), (4, 0.5), (8, 1.0), (15, 1.0)):  # after the last epoch the last radius
        inner = make()
        config = inner.attack.get_config()
        scaled = {name: part * config[name] for name in ("epsilon", "step_size")}
        inner.attack = inner.attack.from_config(config | scaled)
        # A sign may turn where a gradient is 0.
        difference = np.abs(found(tf.constant(step)) - inner.perturb(network, X, Y, seed=(1, 2)))
        assert (difference > 1e-6).mean() < 0.002
    assert found.experimental_get_tracing_count() == 1
    assert plain.attack.epsilon == radii[-1]


def test_training_follows_the_schedule_inside_of_weights():
    inner = objectives.TRADES(attacks.LinfPGD(0.1, 0.04, 1), start="uniform")
    schedule = objectives.TabledEpsilon((0.0, 0.1), steps_per_epoch=1)
    objective = objectives.Reweighted(objectives.ScheduledRadius(inner, schedule), "nat_max_prob")
    model = RobustModel(tiny_network("plain"), objective)
    model.compile(coupled("sgd", 0.05, 1e-4))
    at = [objective.at_step(tf.constant(step)) for step in (0, 1)]
    assert all(isinstance(each.objective, objectives.TRADES) for each in at)
    largest = [np.abs(each.perturb(model.network, X, Y, seed=(0, 1)) - X).max() for each in at]
    assert largest == pytest.approx([0, 0.1], abs=1e-6)
    assert np.isfinite(model.fit(X, Y, batch_size=8, verbose=0).history["loss"]).all()


def test_bad_schedules():
    with pytest.raises(ValueError, match="`radii` are pixels"):
        objectives.TabledEpsilon((), 3)
    with pytest.raises(ValueError, match="is a radius in pixels"):
        objectives.TabledEpsilon((0.0, 0.0), 3)
    with pytest.raises(ValueError, match="must attack in a ball"):
        objectives.ScheduledRadius(objectives.Natural(), objectives.TabledEpsilon((0.1,), 1))
    with pytest.raises(ValueError, match="`epsilon` must be positive"):
        attacks.LinfPGD(0.0).at_radius(tf.constant(0.1))
