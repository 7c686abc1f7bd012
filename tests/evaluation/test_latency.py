import keras
import pytest

from tf_robust_sparse.evaluation.latency import median_latency


def test_a_network_of_more_work_takes_longer():
    def network(width):
        x = inputs = keras.Input((64,))
        for _ in range(3):
            x = keras.layers.Dense(width)(x)
        return keras.Model(inputs, x)

    found = median_latency({"small": network(8), "large": network(2000)}, 64, seconds=0.2)
    assert list(found) == ["small", "large"]
    assert 0 < 2 * found["small"] < found["large"] < 10


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("seconds", -1.0), ("rounds", 0)])
def test_bad_numbers_are_named(name, value):
    arguments = {"networks": {}, "batch_size": 1, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be positive"):
        median_latency(**arguments)
