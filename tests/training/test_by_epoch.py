"""Learning rates, kept fractions and radii by epoch are the published ones."""

import math

import numpy as np
import pytest

from tf_robust_sparse.training import policy_rates
from tf_robust_sparse.training.by_epoch import POLICIES, RADIUS_COURSES, gradual_rates, radius_course


def test_published_cosine():
    rates = policy_rates("cosine_lr", 0.1, 400)
    np.testing.assert_allclose(
        [rates[epoch] for epoch in (0, 100, 200, 300, 399)], [0.1, 0.0853553, 0.05, 0.0146447, 1.5421e-6], rtol=1e-4
    )


def test_published_warmup():
    rates = policy_rates("cosine_lr", 0.1, 100, warmup=5)
    np.testing.assert_allclose(rates[:6], [0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert len(rates) == 100


def test_published_stages():
    kept, rates = gradual_rates(0.01, 400, 4), policy_rates("cosine_lr", 0.1, 400, stages=4)
    np.testing.assert_allclose([kept[epoch] for epoch in (0, 100, 200, 300)], [0.316228, 0.1, 0.0316228, 0.01], 1e-5)
    assert [epoch for epoch in range(1, 400) if kept[epoch] != kept[epoch - 1]] == [100, 200, 300]
    assert [rates[epoch] for epoch in (0, 100, 200, 300)] == [0.1] * 4
    assert rates[99] < 1e-4


def test_the_warmup_belongs_to_the_first_stage():
    kept = gradual_rates(0.04, 10, 2, warmup=2)
    np.testing.assert_allclose(kept, [0.2] * 6 + [0.04] * 4)
    assert gradual_rates(0.3, 5) == [0.3] * 5


@pytest.mark.parametrize(
    ("policy", "settings", "epochs", "expected"),
    [
        ("constant_lr", {}, (0, 9), (0.1, 0.1)),
        ("multistep_lr", {"interval": 4}, (3, 4, 8), (0.1, 0.01, 0.001)),
        ("manual_multistep_lr", {"milestones": (2, 5)}, (1, 2, 5, 9), (0.1, 0.01, 0.001, 0.001)),
        ("linear_lr", {"slope": -0.01}, (0, 5), (0.1, 0.05)),
        ("exponential_lr", {"power": 0.5, "interval": 2}, (0, 2, 4), (0.1, 0.05, 0.025)),
        ("jump_lr", {"power": 0.5, "min_jump": 4, "jump_interval": 2}, (0, 3, 4, 6), (0.1, 0.1, 0.05, 0.025)),
        ("cosine_lr", {"alpha": 0.5}, (0, 5), (0.1, 0.075)),
        ("cosine_lr", {"lowest": 0.04, "highest": 0.09}, (0, 9), (0.09, 0.04)),
    ],
)
def test_policies(policy, settings, epochs, expected):
    rates = policy_rates(policy, 0.1, 10, **settings)
    np.testing.assert_allclose([rates[epoch] for epoch in epochs], expected, rtol=1e-9)
    assert policy in POLICIES


def test_bad_input():
    with pytest.raises(ValueError, match="`policy` must be one of constant_lr"):
        policy_rates("cos", 0.1, 10)
    with pytest.raises(ValueError, match="`epochs` must be larger than `warmup`"):
        policy_rates("cosine_lr", 0.1, 5, warmup=5)
    with pytest.raises(ValueError, match=r"Received: -0\.1 in epoch 3"):
        policy_rates("linear_lr", 0.1, 3, slope=-0.1)
    with pytest.raises(ValueError, match="at least as many epochs"):
        gradual_rates(0.1, 3, stages=4)


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
    assert found == pytest.approx(radii, abs=1e-5) and arguments["course"] in RADIUS_COURSES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"course": "square"}, "`course` must be one of constant"),
        ({"start": 0}, "needs a positive start"),
        ({"circle": 0}, "positive intervals"),
        ({"epochs": 0}, "`epochs` is at least 1"),
        ({"segments": (1,)}, "two or more different epochs"),
        ({"segments": (1, 2), "segment_ratios": (1,)}, "with as many `segment_ratios`"),
        ({"course": "linear", "slope": -1.0}, "Radii must be at least 0.*Received: -1 in epoch 3"),
    ],
)
def test_bad_courses(arguments, message):
    with pytest.raises(ValueError, match=message):
        radius_course(**{"course": "constant", "start": 1, "epochs": 3, **arguments})
