"""Integer arguments of sparsifiers and schedules: what is none is named, never cut off."""

import numpy as np
import pytest

import tf_robust_sparse as trs
from tf_robust_sparse import sparsity
from tf_robust_sparse.sparsity.binarization import StochasticBinarization

X = np.zeros((2, 4, 4, 1), "float32")
KINDS = {
    "sampling": (lambda **given: sparsity.ConnectivitySampling(0.1, **given), ["seed"]),
    "binarization": (StochasticBinarization, ["seed"]),
    "set": (sparsity.SET, ["interval", "end_step", "seed"]),
    "flying bird": (sparsity.FlyingBird, ["interval", "late_interval", "end_step", "seed"]),
    "flying bird plus": (sparsity.FlyingBirdPlus, ["start_epoch", "window", "interval", "seed"]),
    "n:m": (sparsity.NM, ["n", "m", "interval"]),
    "obs": (lambda **given: sparsity.OBS(X, **given), ["positions", "batch_size", "seed"]),
    "polynomial": (
        lambda **given: sparsity.schedules.polynomial(0.1, **{"end_step": 9, **given}),
        ["end_step", "begin_step", "frequency"],
    ),
    "constant": (lambda **given: sparsity.schedules.constant(0.1, **given), ["end_step", "begin_step", "frequency"]),
}


@pytest.mark.parametrize("value", [2.5, True, -7])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in KINDS.items() for name in names])
def test_what_is_no_integer_of_the_range_is_named(kind, name, value):
    with pytest.raises(ValueError, match=rf"Received: (begin_step=\d, )?{name}={value}"):
        KINDS[kind][0](**{name: value})


@pytest.mark.parametrize(("kind", "name"), [("set", "interval"), ("obs", "seed"), ("flying bird plus", "window")])
def test_integers_of_numpy_are_taken(kind, name):
    found = getattr(KINDS[kind][0](**{name: np.int64(3)}), name)
    assert found == 3 and type(found) is int


def test_a_size_that_is_no_integer_is_named():
    with pytest.raises(ValueError, match=r"`min_size` must be a number of entries, at least 0. Received: min_size=2.5"):
        trs.sparsify(trs.models.small_cnn(input_shape=(12, 12, 1)), 0.1, min_size=2.5)
