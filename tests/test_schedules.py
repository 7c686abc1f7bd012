"""The shapes of schedules, on numbers and on tensors."""

import pytest
import tensorflow as tf

from tf_robust_sparse import schedules


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        (lambda x: schedules.linear(x, 2.0, 6.0), [2, 3, 4, 6]),
        (schedules.cosine, [1, 0.5 + 0.125**0.5, 0.5, 0]),
        (lambda x: schedules.cosine(2 * x, 2, 0.5), [1, 0.75 + 0.03125**0.5, 0.75, 0.5]),
        (lambda x: schedules.polynomial(x, 3), [1, 0.421875, 0.125, 0]),
    ],
)
def test_a_shape_is_the_same_on_numbers_and_tensors(shape, values):
    share = [0.0, 0.25, 0.5, 1.0]
    assert [shape(x) for x in share] == pytest.approx(values, abs=1e-15)
    for dtype, error in ((tf.float32, 1e-6), (tf.float64, 1e-15)):
        found = tf.function(shape)(tf.constant(share, dtype))
        assert found.dtype == dtype and found.numpy().tolist() == pytest.approx(values, abs=error)


def test_progress_stays_between_its_ends():
    assert schedules.progress(tf.constant([0, 3, 4, 6, 7, 9]), 3, 7).numpy().tolist() == [0, 0, 0.25, 0.75, 1, 1]
