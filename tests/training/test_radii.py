"""The radius of the attack by epoch: courses, warm-up, bounds, segments; and attacks and steps that follow it."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, objectives
from tf_robust_sparse.training import RADIUS_COURSES, RobustModel, coupled, radius_course

X, Y = tiny_images(16)


@pytest.mark.parametrize(
    ("arguments", "radii"),
    [
        ({"course": "constant", "start": 8}, [8, 8, 8, 8, 8]),
        ({"course": "constant", "start": 8, "warmup": 4}, [0, 2, 4, 6, 8]),
        ({"course": "constant_int", "start": 7, "warmup": 3}, [0, 2, 5, 7, 7]),
        ({"course": "linear", "start": 2, "slope": 1.5, "highest": 6}, [2, 3.5, 5, 6, 6]),
        ({"course": "linear", "start": 8, "slope": -3, "lowest": 1}, [8, 5, 2, 1, 1]),
        ({"course": "linear", "start": 2, "slope": 1, "warmup": 2}, [0, 1, 4, 5, 6]),
        ({"course": "exponential", "start": 1, "power": 4, "interval": 2}, [1, 2, 4, 8, 16]),
        ({"course": "jump", "start": 1, "power": 2, "min_jump": 2, "jump_interval": 2}, [1, 1, 2, 2, 4]),
        ({"course": "cosine", "start": 8, "circle": 4}, [8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5), 0]),
        ({"course": "cosine", "start": 8, "circle": 4, "alpha": 0.5}, [8, 6 + 2 * math.sqrt(0.5), 6, 6 - 2**0.5, 4]),
        # What happens from 0 to 2 happens again, twice as slowly, from 2 to 6, at half the radius.
        (
            {"course": "linear", "start": 1, "slope": 2, "segments": (0, 2, 6), "segment_ratios": (1, 0.5, 0.25)},
            [1, 3, 0.5, 1, 1.5, 2, 1.25, 1.25],
        ),
        ({"course": "linear", "start": 1, "slope": 1, "segments": (2, 4)}, [3, 3, 3, 4, 5, 5]),
    ],
)
def test_courses(arguments, radii):
    found = radius_course(**arguments, epochs=len(radii))
    assert found == pytest.approx(radii, abs=1e-5)


def test_every_course_is_tested():
    assert set(RADIUS_COURSES) == {"constant", "constant_int", "linear", "exponential", "jump", "cosine"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"course": "square"}, "`course` must be one of constant"),
        ({"start": 0}, "begins at a positive radius"),
        ({"circle": 0}, "with positive intervals"),
        ({"segments": (1,)}, "two or more different epochs"),
        ({"segments": (1, 2), "segment_ratios": (1,)}, "with as many `segment_ratios`"),
        ({"course": "linear", "slope": -1.0}, "The radius falls to -1 in epoch 3"),
    ],
)
def test_bad_courses(arguments, message):
    with pytest.raises(ValueError, match=message):
        radius_course(**{"course": "constant", "start": 1, "epochs": 3, **arguments})


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.AT(attacks.LinfPGD(0.1, 0.04, 3)),
        lambda: objectives.AT(attacks.LinfBestPGD(0.1, 0.04, 3)),
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
        inner.attack = type(inner.attack)(inner.attack.epsilon * part, inner.attack.step_size * part, 3)
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
