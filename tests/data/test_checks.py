"""The one check of images and labels."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.data.checks import checked_images, checked_in_graph, checked_labels, failures_in_one_line

X = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
Y = np.array([0, 3, 1, 2])

BAD_IMAGES = {
    "0..255": (X * 255, "divide by 255. Received: pixels from"),
    "[-1, 1]": (2 * X - 1, r"pass \(x \+ 1\) / 2"),
    "normalized": ((X - 0.5) / 0.2, "undo the normalization"),
    "NaN": (np.where(X > 0.5, np.nan, X), r"\d+ of 256 pixels NaN or infinite"),
    "infinite": (np.where(X > 0.5, np.inf, X), r"\d+ of 256 pixels NaN or infinite"),
    "bytes": ((X * 255).astype(np.uint8), r"tf.cast\(x, tf.float32\) / 255. Received: dtype uint8"),
    "booleans": (X > 0.5, "Received: dtype bool"),
    "none": (X[:0], r"at least one image. Received: shape \(0, 8, 8, 1\)"),
    "one number each": (X[:, 0, 0, 0], "add a batch axis"),
    "text": ("images.npz", "Received: str 'images.npz'"),
    "ragged": ([X, X[:, :4]], "Received: list"),
    "nothing": (None, "Received: NoneType"),
    "objects": (np.array([None, X], object), "array of dtype object"),
}
BAD_LABELS = {
    "-1": (Y - 1, "Received: labels from -1 to 2"),
    "classes": (Y + 1, "Received: labels from 1 to 4"),
    "floats": (Y / 1.0, "Received: dtype float64"),
    "booleans": (Y > 0, "Received: dtype bool"),
    "one-hot": (np.eye(4, dtype=int)[Y], r"argmax.*shape \(4, 4\)"),
    "too few": (Y[:3], "Received: 4 images, 3 labels"),
    "beyond int64": (np.array([0, 1, 2, 2**63 + 1], np.uint64), "to 9223372036854775809"),
    "text": (["cat", "dog", "cat", "dog"], "Received: list"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_are_refused_in_one_line(case):
    images, message = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=message) as error:
        checked_images(images)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(ValueError, match=f"here: images must.*{message}"):
        checked_images(images, where="here")


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_are_refused_in_one_line(case):
    labels, message = BAD_LABELS[case]
    with pytest.raises(ValueError, match=message) as error:
        checked_labels(labels, 4, 4)
    assert "\n" not in str(error.value)


def test_what_is_right_passes():
    for images in (X, X.astype(np.float16), X.astype(np.float64), tf.constant(X), tf.cast(X, tf.bfloat16)):
        assert checked_images(images, (8, None, 1)).shape == X.shape
    assert checked_images((X * 255).astype(np.uint8), bytes_too=True).dtype == np.uint8
    assert checked_images(X.tolist()).shape == X.shape
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        for labels in (Y.astype(kind), Y.astype(kind)[:, None], tf.constant(Y.astype(kind))):
            checked = checked_labels(labels, 4, 4)
            assert checked.dtype == np.int64
            np.testing.assert_array_equal(checked, Y)
    with pytest.raises(ValueError, match=r"shape \(n, 9, any, 1\).*Received: shape \(4, 8, 8, 1\)"):
        checked_images(X, (9, None, 1))


def test_a_traced_check_adds_nothing_to_the_graph_but_sees_types_and_shapes():
    @tf.function(autograph=False)
    def check(x, y):
        return checked_images(x, (8, 8, 1)), checked_labels(y, None, 4)

    kinds = [tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None,), tf.int64)]
    operations = {operation.type for operation in check.get_concrete_function(*kinds).graph.get_operations()}
    assert operations <= {"Placeholder", "Identity"}
    for x, y, message in (
        (tf.TensorSpec((None, 8, 8, 1), tf.uint8), kinds[1], "dtype uint8"),
        (tf.TensorSpec((None, 8, 9, 1)), kinds[1], r"shape \(None, 8, 9, 1\)"),
        (tf.TensorSpec(None), kinds[1], "shape None"),
        (kinds[0], tf.TensorSpec((None, 4), tf.int64), "argmax"),
        (kinds[0], tf.TensorSpec((None,)), "dtype float32"),
    ):
        with pytest.raises(ValueError, match=message):
            check.get_concrete_function(x, y)


def test_a_step_fails_before_anything_is_computed_from_wrong_values():
    seen = tf.Variable(0.0)

    @tf.function(autograph=False)
    def step(x, y):
        x, y = checked_in_graph(x, y, (8, 8, 1), 4)
        seen.assign_add(tf.reduce_mean(x) + tf.cast(tf.reduce_sum(y), tf.float32))

    step(tf.constant(X), tf.constant(Y, tf.uint8))
    right = float(seen)
    assert right > 6
    for x, y, message in (
        (X * 255, Y, r"^Images must be floats in \[0, 1\].*Received: pixels from 0\.\d+ to 2\d\d\.\d+$"),
        (X * np.nan, Y, "^Images must be.*nan"),
        (X, Y + 1, r"^Labels must be integers in \[0, 4\), because.*Received: labels from 1 to 4$"),
    ):
        with pytest.raises(ValueError, match=message), failures_in_one_line():
            step(tf.constant(x, tf.float32), tf.constant(y, tf.uint8))
        with pytest.raises(ValueError, match="must be"):  # eagerly too
            checked_in_graph(x, y, (8, 8, 1), 4)
    assert float(seen) == right
    with pytest.raises(tf.errors.InvalidArgumentError, match="something else"), failures_in_one_line():
        tf.debugging.Assert(False, ["something else"])
