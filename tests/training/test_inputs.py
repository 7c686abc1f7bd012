"""What a RobustModel is given: networks, and images and labels in every form that Keras takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import certify, evaluation, objectives
from tf_robust_sparse.attacks import LinfFGSM
from tf_robust_sparse.training import RobustModel

X, Y = tiny_images(16)


@pytest.fixture(scope="module")
def model():
    model = RobustModel(tiny_network("plain"), objectives.Natural())
    model.compile("sgd")
    return model


class Pairs(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.x[8 * index : 8 * index + 8], self.y[8 * index : 8 * index + 8]


def batches(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def once(x, y):
    """A data set that can be read once: its generator goes on where it was."""
    pairs = iter([(x[:8], y[:8]), (x[8:], y[8:])])
    spec = tf.TensorSpec((None, 12, 12, 1), x.dtype), tf.TensorSpec((None,), y.dtype)
    return tf.data.Dataset.from_generator(lambda: pairs, output_signature=spec)


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"])
def test_labels_of_any_width_train(model, kind):
    y = Y.astype(kind)
    assert np.isfinite(model.train_on_batch(X, y))
    if kind in ("uint8", "uint64"):  # in steps that are traced for them, and in a column, as keras.datasets has them
        model.fit(batches(X, y[:, None]), validation_data=batches(X, y), verbose=0)
        model.fit(X, y[:, None], validation_data=(X, y), verbose=0)
        assert np.isfinite(objectives.TRADES(LinfFGSM(0.1)).loss(model.network, X, y, X)[0]).all()


@pytest.mark.parametrize("form", [once, Pairs, lambda x, y: ((x[i : i + 8], y[i : i + 8]) for i in (0, 8))])
def test_every_form_of_data_is_read_once_and_checked(model, form):
    seen = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    model.fit(form(X, Y), steps_per_epoch=2, verbose=0, shuffle=False, callbacks=[count])
    assert seen == [0, 1]  # the check took no batch away
    before = [np.array(v) for v in [*model.network.variables, *model.optimizer.variables]]
    for x, y, message in (
        (255 * X, Y, r"floats in \[0, 1\].*to 2\d\d"),
        (X, Y + 5, "Received: labels from 5"),
        (X, Y[:3], "as many as images.* 8 3$"),
    ):
        if len(y) < 8 and form is once:
            continue  # its batches are pairs of arrays
        with pytest.raises(ValueError, match=message) as error:
            model.fit(form(x, y), steps_per_epoch=2, verbose=0, shuffle=False)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=message):
            model.evaluate(form(x, y), steps=2, verbose=0)
    for a, b in zip(before, [*model.network.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(a, b)


def test_single_batches_are_checked(model):
    for step in (model.train_on_batch, model.test_on_batch):
        for x, y, message in (
            (255 * X, Y, "divide by 255"),
            (X, Y - 5, "labels from -5"),
            (X, Y[:3], "3 labels"),
        ):
            with pytest.raises(ValueError, match=message):
                step(x, y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], "at least one image"),
        (X, Y[:4], "16 images, 4 labels"),
        ("images", Y, "Received: str 'images'"),
        (["a", "b"], [0, 1], "Received: list"),
        ([X, X], Y, r"shape \(2, 16, 12, 12, 1\)"),
        (X, None, "pairs"),
        (None, None, "pairs"),
        ([X], None, "pairs"),
    ],
)
def test_what_is_no_data_is_one_line(model, x, y, message):
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message) as error:
            call(x, y, verbose=0)
        assert "\n" not in str(error.value)


def test_lists_of_images_are_arrays(model):
    assert np.isfinite(model.evaluate(list(X), list(Y), verbose=0))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.steps = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])

    def call(self, x, training=None):
        return self.steps(x, training=training)


def networks():
    x = keras.Input((12, 12, 1))
    logits = keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(x))
    probabilities = keras.Model(x, keras.layers.Softmax()(logits))
    subclassed = Subclassed()
    subclassed(X)
    return {
        "two outputs": (keras.Model(x, [logits, logits]), "one output, the logits.*2 outputs"),
        "a dictionary": (keras.Model(x, {"logits": logits}), "the tensor of logits alone.*in a dict"),
        "two inputs": (keras.Model([x, keras.Input((3,))], logits), "one input, the images.*2 inputs"),
        "subclassed": (subclassed, r"pass keras.Model\(x, network\(x\)\).*the subclassed model Subclassed"),
        "not built": (keras.Sequential([keras.layers.Dense(3)]), "must be built"),
        "feature maps": (keras.Model(x, keras.layers.Conv2D(3, 3)(x)), r"\(batch, classes\).*\(None, 10, 10, 3\)"),
        "softmax layer": (probabilities, "evaluation.without_softmax"),
        "softmax activation": (
            keras.Sequential([x, keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]),
            "evaluation.without_softmax",
        ),
        "softmax operation": (keras.Model(x, keras.ops.softmax(logits)), "evaluation.without_softmax"),
        "softmax within": (keras.Sequential([x, probabilities]), "evaluation.without_softmax"),
    }


def test_networks_that_do_not_fit_are_one_line():
    for network, message in networks().values():
        with pytest.raises(ValueError, match=message) as error:
            RobustModel(network, objectives.Natural())
        assert "\n" not in str(error.value)
        if "softmax" not in message:
            with pytest.raises(ValueError, match=message):
                certify.margins(network, X, Y, 0.1)
        if "one output" in message or "one input" in message:  # evaluation takes subclassed models and dictionaries
            with pytest.raises(ValueError, match=message) as error:
                evaluation.robust_accuracy(network, (X, Y))
            assert "\n" not in str(error.value)


def test_the_ways_out_that_messages_name_work():
    found = networks()
    x = keras.Input((12, 12, 1))
    two = found["two outputs"][0]
    for network in (
        keras.Model(two.inputs, two.outputs[0]),
        keras.Model(x, found["subclassed"][0](x)),
        evaluation.without_softmax(found["softmax layer"][0]),
        evaluation.without_softmax(found["softmax activation"][0]),
    ):
        model = RobustModel(network, objectives.AT(LinfFGSM(0.1)))
        model.compile("sgd")
        assert np.isfinite(model.train_on_batch(X, Y))
