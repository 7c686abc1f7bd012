import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy


def test_cross_entropy_of_each_example():
    loss = cross_entropy([0, 1], tf.constant([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]))
    assert loss.shape == (2,)
    np.testing.assert_allclose(np.mean(loss), 0.425058, atol=1e-6)


def test_half_precision_logits_are_computed_in_float32():
    loss = cross_entropy([0], tf.constant([[12.0, 0.0]], tf.float16))
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-12.0))], atol=1e-6)
    assert loss > 0


@pytest.mark.parametrize("y", [[[0], [1]], [[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0]])
def test_labels_that_are_not_integers_of_one_dimension_are_refused(y):
    with pytest.raises(ValueError, match=r"integer labels of shape \(batch,\).*Received"):
        cross_entropy(y, tf.zeros((2, 2)))
