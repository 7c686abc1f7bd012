"""What RobustModel refuses, in words that help: losses, data, arguments, files, and training that diverges."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_dataset, tiny_network
from tests.training.robust_models import X, Y, compiled
from tf_robust_sparse import objectives
from tf_robust_sparse.sparsity import MagnitudePruning
from tf_robust_sparse.training import RobustModel, StopOnNaN


@pytest.mark.parametrize("loss", [None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)])
def test_the_cross_entropy_of_logits_is_an_accepted_loss(loss):
    model = RobustModel(tiny_network("plain"), objectives.Natural())
    model.compile("sgd", loss=loss)
    assert list(model.fit(tiny_dataset(16), verbose=0).history) == ["loss"]


@pytest.mark.parametrize(
    "loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy(), "mse"]
)
def test_another_loss_is_refused(loss):
    model = RobustModel(tiny_network("plain"), objectives.Natural())
    with pytest.raises(ValueError, match=r"`loss` must be .*from_logits=True.*Received"):
        model.compile("sgd", loss=loss)


BAD_DATA = {
    "bytes": ((255 * X).astype(np.uint8), Y, r"floats in \[0, 1\]; divide bytes by 255"),
    "too bright": (X * 2, Y, r"floats in \[0, 1\].*pixels from"),
    "negative": (X - 0.5, Y, r"floats in \[0, 1\].*pixels from"),
    "not a number": (np.full_like(X, np.nan), Y, r"floats in \[0, 1\].*(nan|NaN)"),
    "label too large": (X, Y + 5, r"Labels must be integers in \[0, 10\)"),
    "negative label": (X, Y - 5, r"Labels must be integers in \[0, 10\)"),
    "one-hot": (X, np.eye(10, dtype=np.int64)[Y], r"argmax.*\(\w+, 10\)"),
    "float labels": (X, Y.astype(np.float32), "Labels must be integers"),
    "another size": (X[:, :8], Y, r"batch of shape \(n, 12, 12, 1\).*Received: shape \(\w+, 8, 12, 1\)"),
    "no channels": (X[..., 0], Y, r"batch of shape \(n, 12, 12, 1\)"),
}


@pytest.fixture(scope="module")
def untrained():
    """A model that refuses all it is given."""
    return compiled("natural", "dense")


@pytest.mark.parametrize("case", BAD_DATA)
@pytest.mark.parametrize("form", ["arrays", "dataset", "validation arrays", "validation dataset"])
def test_bad_data_is_refused_before_training(case, form, untrained):
    x, y, message = BAD_DATA[case]
    model = untrained
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8) if "dataset" in form else (x, y)
    if "validation" in form:
        arguments = {"x": tiny_dataset(), "validation_data": data}
    else:
        arguments = {"x": data} if "dataset" in form else {"x": x, "y": y}
    with pytest.raises(ValueError, match=message):
        model.fit(**arguments, verbose=0)
    assert int(model.optimizer.iterations) == 0
    if "validation" not in form:
        with pytest.raises(ValueError, match=message):
            model.evaluate(**arguments, verbose=0)


def test_what_xla_cannot_compile_is_refused():
    model = compiled("natural")
    with pytest.raises(ValueError, match="ConnectivitySampling draws numbers of connections"):
        model.compile("sgd", jit_compile=True)
    compiled("natural", "magnitude").compile("sgd", jit_compile=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": X, "y": Y, "sample_weight": np.ones(16)},
        {"x": X, "y": Y, "class_weight": {0: 2.0}},
        {"x": tf.data.Dataset.from_tensor_slices((X, Y, np.ones(16))).batch(8)},
        {"x": X, "y": Y, "validation_data": (X, Y, np.ones(16))},
        {"x": tf.data.Dataset.from_tensor_slices(X).batch(8)},
    ],
)
def test_weights_of_samples_are_refused(arguments, untrained):
    with pytest.raises(ValueError, match=r"without (sample weights|`sample_weight`|`class_weight`)"):
        untrained.fit(**arguments, verbose=0)


def test_weights_of_samples_are_refused_in_evaluation_too(untrained):
    with pytest.raises(ValueError, match="without sample weights"):
        untrained.evaluate(X, Y, sample_weight=np.ones(16), verbose=0)


def test_saving_the_wrapper_is_refused_with_a_hint(tmp_path, untrained):
    with pytest.raises(ValueError, match=r"save_network\(model.network, path\)"):
        untrained.save(tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet18"}, "`network` must be a built keras.Model"),
        ({"objective": "trades"}, "`objective` must be an objective"),
        ({"sparsifier": 0.1}, "`sparsifier` must be a sparsifier"),
        ({"validation_attack": "pgd"}, "`validation_attack` must be an attack"),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"seed": 1.5}, "`seed` must be an integer.*seed=1.5"),
        ({"sparsifier": MagnitudePruning(0.1)}, 'kernel="masked"'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RobustModel(**{"network": tiny_network(), "objective": objectives.Natural(), **arguments})


def test_an_objective_that_returns_no_logits_is_named():
    class Alone(objectives.Natural):
        def loss(self, network, x, y, x_adv):
            return super().loss(network, x, y, x_adv).per_example

    model = RobustModel(tiny_network("plain"), Alone())
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"must return Losses\(per_example, logits, logits_adv=None\).*from Alone"):
        model.fit(X, Y, verbose=0)


def test_an_objective_that_returns_the_mean_of_its_losses_is_named():
    class Mean(objectives.Natural):
        def loss(self, network, x, y, x_adv):
            losses = super().loss(network, x, y, x_adv)
            return losses._replace(per_example=tf.reduce_mean(losses.per_example))

    model = RobustModel(tiny_network("plain"), Mean())
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"\(batch,\), without mean or sum. Received: shape \(\) from Mean"):
        model.fit(X, Y, verbose=0)


def test_training_that_diverges_stops_with_advice():
    model = RobustModel(tiny_network("plain", batch_norm=False), objectives.Natural())
    model.compile(keras.optimizers.SGD(1e30))
    with pytest.raises(
        FloatingPointError, match=r"became (nan|inf) in epoch 1, batch \d+\. Try a smaller learning rate"
    ):
        model.fit(tiny_dataset(), epochs=3, verbose=0, callbacks=[StopOnNaN()])
