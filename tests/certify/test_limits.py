"""What bounds and certificates refuse, and layers whose rules depend on positions or names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import certify, layers
from tf_robust_sparse.certify import table
from tf_robust_sparse.certify.bound_graph import bound_graph
from tf_robust_sparse.certify.bounds import training_margins
from tf_robust_sparse.evaluation import load_saved_model

RANDOM = np.random.default_rng(0)
X = RANDOM.random((4, 5, 4, 3), "float32")
METHODS = ("ibp", "crown-ibp", "crown", "zonotope")


def network(*middle, name="logits"):
    """A convolution, what is given, and logits."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((5, 4, 3))
    for layer in middle:
        x = layer(x)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name=name)(keras.layers.Flatten()(x)))


def assert_sound(found, method, epsilon=0.05):
    """Bounds of margins lie below those of many images in the ball."""
    y = np.argmax(found(X, training=False), -1)
    bounds = certify.margins(found, tf.constant(X), tf.constant(y), epsilon, method).numpy()
    for _ in range(50):
        moved = np.clip(X + RANDOM.uniform(-epsilon, epsilon, X.shape), 0, 1).astype("float32")
        logits = found(moved, training=False).numpy()
        for logit, label, bound in zip(logits, y, bounds, strict=True):
            assert (logit[label] - np.delete(logit, label) >= bound).all()
    narrow = training_margins(found, tf.constant(X), tf.constant(y), 0.0, method).numpy()
    logits = found(X, training=False).numpy()
    expected = [logit[label] - np.delete(logit, label) for logit, label in zip(logits, y, strict=True)]
    np.testing.assert_allclose(narrow, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("axis", "method"),
    [
        *((-1, method) for method in METHODS),
        *(
            pytest.param(axis, method, marks=[] if method == "ibp" else pytest.mark.full)
            for axis in (1, (1, 2, 3))
            for method in METHODS
        ),
    ],
)
def test_normalization_over_any_axis(axis, method):
    shape = [length if place in np.atleast_1d(axis) % 4 else 1 for place, length in enumerate((1, 5, 4, 3))]
    mean, variance = RANDOM.normal(size=shape), RANDOM.uniform(0.1, 3, shape)
    layer = keras.layers.Normalization(axis=axis)
    layer.adapt(X)
    layer.mean, layer.variance = (tf.constant(each, tf.float32) for each in (mean, variance))
    assert_sound(network(layer), method)


@pytest.mark.parametrize("method", METHODS)
def test_rescaling_of_every_pixel(method):
    scale = RANDOM.normal(size=(5, 4, 3)).astype("float32")
    assert_sound(network(keras.layers.Rescaling(scale.tolist(), offset=(scale / 2).tolist())), method)


@pytest.mark.parametrize("method", METHODS)
def test_names_that_look_like_steps(method):
    x = inputs = keras.Input((5, 4, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="a")(x)
    x = keras.layers.Conv2D(2, 2, name="a_activation")(x)
    assert_sound(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x))), method)


class Doubled(keras.layers.ReLU):
    def call(self, inputs):
        return 2 * super().call(inputs)


class Renamed(keras.layers.ReLU):
    """Computes what its parent does."""


def test_what_computes_something_else_is_refused():
    with pytest.raises(ValueError, match=r"of type Doubled overrides call\(\) of ReLU"):
        bound_graph(network(Doubled()))
    bound_graph(network(Renamed()))


def test_two_outputs_are_refused():
    one = network()
    both = keras.Model(one.input, [one.output, one.get_layer("conv").output])
    with pytest.raises(ValueError, match=r"one output.*2 outputs"):
        bound_graph(both)


@pytest.mark.parametrize("x", [255 * X, (255 * X).astype(np.uint8), X - 0.5, np.full_like(X, np.nan)])
def test_pixels_outside_of_their_range_are_refused(x, tmp_path):
    found, y = network(), np.zeros(4, np.int64)
    with pytest.raises(ValueError, match=r"Images must be floats in \[0, 1\]"):
        certify.verify_images(found, x, y, 8 / 255, "ibp", tmp_path / "table.tsv")
    smoothed = certify.SmoothedClassifier(found, 0.25)
    with pytest.raises(ValueError, match=r"Images must be floats in \[0, 1\]"):
        certify.certify_images(smoothed, x, y, tmp_path / "table.tsv", n0=4, n=16)
    with pytest.raises(ValueError, match=r"Images must be floats in \[0, 1\]"):
        smoothed.certify(x[0], 4, 16)
    with pytest.raises(ValueError, match=r"Images must be floats in \[0, 1\]"):
        certify.margins(found, tf.constant(x), tf.constant(y), 0.1, "ibp")
    assert not list(tmp_path.iterdir())


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        certify.margins(network(), tf.constant(X), tf.zeros(4, tf.int64), -0.1, "ibp")


@pytest.mark.parametrize("kind", ["bounds", "smoothing"])
def test_a_table_is_of_one_network_and_its_images(kind, tmp_path):
    y = np.zeros(4, np.int64)

    def certified(found, x):
        if kind == "bounds":
            return certify.verify_images(found, x, y, 0.01, "ibp", tmp_path / "table.tsv")
        return certify.certify_images(certify.SmoothedClassifier(found, 0.25), x, y, tmp_path / "table.tsv", n0=4, n=16)

    found = network()
    rows = certified(found, X)
    assert [row[:5] for row in certified(found, X)] == [row[:5] for row in rows]
    with pytest.raises(ValueError, match="of other settings, another network or other images"):
        certified(found, 1 - X)
    other = network()
    other.get_layer("logits").kernel.assign(-other.get_layer("logits").kernel)
    with pytest.raises(ValueError, match="of other settings, another network or other images"):
        certified(other, X)


def test_a_table_that_ends_within_a_line_is_cut_and_not_written_again(tmp_path, monkeypatch):
    path = tmp_path / "table.tsv"
    arguments = (path, {"n": 1}, ("idx", "label"), lambda words: tuple(map(int, words)))
    assert table.begin(*arguments) == {}
    table.append(path, (0, 7))
    whole = path.read_text()
    path.write_text(whole + "1\t")
    monkeypatch.setattr(type(path), "write_text", None)  # a kill after it has emptied the file would lose all lines
    assert table.begin(*arguments) == {0: (0, 7)}
    assert path.read_text() == whole


def test_a_full_disk_names_the_table(tmp_path):
    (tmp_path / "table.tsv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'table.tsv'}'"):
        table.append(tmp_path / "table.tsv", (0, 7))


def test_a_table_knows_the_weights_of_a_saved_model(tmp_path):
    marks = set()
    for number in range(2):
        found = network()
        found.get_layer("logits").bias.assign([0.0, 0.0, number])
        found.export(tmp_path / str(number), verbose=False)
        marks.add(table.fingerprint(load_saved_model(tmp_path / str(number)), X))
        assert table.fingerprint(load_saved_model(tmp_path / str(number)), X) in marks
    assert len(marks) == 2


def test_a_parametrization_of_this_package_is_bounded():
    x = inputs = keras.Input((5, 4, 3))
    x = layers.MaskedConv2D(4, 3, activation="relu")(x)
    assert_sound(keras.Model(inputs, layers.MaskedDense(3)(keras.layers.Flatten()(x))), "crown")
