"""Models of plain Keras layers in kernels of this package, and back."""

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tf_robust_sparse import layers, models
from tf_robust_sparse.attacks import LinfFGSM, LinfPGD
from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.saving import strip

RNG = np.random.default_rng(0)
X, Y = RNG.random((8, 10, 10, 3), np.float32), RNG.integers(0, 4, 8)


def users_model():
    """What users have: a skip connection by operations, a nested model, a regularizer, a depthwise convolution."""
    kinds = keras.layers
    inputs = keras.Input((10, 10, 3), name="pixels")
    x = kinds.Normalization(mean=[0.5] * 3, variance=[0.1] * 3, name="pixels_normalized")(inputs)
    x = kinds.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = kinds.ReLU()(kinds.BatchNormalization(name="stem_bn")(x))
    x = kinds.MaxPooling2D()(x)
    x = x + keras.ops.relu(kinds.DepthwiseConv2D(3, padding="same", name="depthwise")(x)) * 0.5
    x = kinds.Conv2D(8, 3, dilation_rate=2, activation="relu", name="dilated")(x)
    x = keras.Sequential([keras.Input((1, 1, 8)), kinds.Conv2D(12, 1, activation="relu", name="inner")], name="nested")(
        x
    )
    x = kinds.Dense(6, activation="relu", name="per_pixel")(x)
    x = kinds.Dense(16, kernel_regularizer="l2", name="regularized")(kinds.Flatten()(x))
    model = keras.Model(inputs, kinds.Dense(4, name="logits")(x))
    for weight in model.weights:  # statistics and biases that are not those of the start
        if weight.name in ("moving_mean", "bias", "beta"):
            weight.assign(RNG.normal(0, 0.1, weight.shape))
    return model


@pytest.mark.parametrize("kernel", ["plain", "masked", "subnet"])
def test_the_model_computes_the_same_there_and_back(kernel):
    model = users_model()
    network, converted, skipped = models.from_keras(model, kernel)
    assert converted == ["stem", "nested/inner", "logits"]
    assert skipped == {
        "dilated": "it has groups or dilation",
        "per_pixel": "its inputs are not vectors",
        "regularized": "it has a kernel_regularizer",
    }
    assert isinstance(network.get_layer("stem_bn"), layers.BatchNormalization)
    assert isinstance(network.get_layer("nested").get_layer("inner"), layers.KERNELS[kernel][1])
    logits = np.asarray(model(X))
    np.testing.assert_allclose(network(X), logits, atol=1e-5)
    with layers.cached_kernels(network), layers.folded_kernels(network):  # batch norm folded, as attacks see it
        np.testing.assert_allclose(network(X), logits, atol=1e-5)
    plain = strip(network)
    np.testing.assert_allclose(plain(X), logits, atol=1e-5)
    assert {type(layer).__module__.partition(".")[0] for layer in all_layers(plain)} == {"keras"}
    if kernel != "subnet":
        return
    attack = LinfPGD(0.05, 0.02, 3)
    assert trs.evaluation.robust_accuracy(network, (X, Y), attack) == pytest.approx(
        trs.evaluation.robust_accuracy(model, (X, Y), attack)
    )


def test_connections_of_a_users_model_are_sampled(tmp_path):
    model = users_model()
    network, *_ = models.from_keras(model, "rewiring", connectivity=0.3, seed=5)
    for layer in layers.kernel_layers(network):
        kernel, original = (
            np.asarray(layer.effective_kernel),
            np.asarray(next(each for each in all_layers(model) if each.name == layer.name).kernel),
        )
        np.testing.assert_array_equal(kernel, np.where(kernel != 0, original, 0))
        assert (kernel != 0).sum() == int(layer.initial_connectivity * kernel.size)
        np.testing.assert_array_equal(layer.positive, original > 0)
    sparsifier = trs.sparsity.ConnectivitySampling(0.3, init_policy="exact")
    trainer = trs.RobustModel(network, trs.objectives.AT(LinfFGSM(0.05)), sparsifier)
    trainer.compile(keras.optimizers.SGD(0.05, momentum=0.9), run_eagerly=True)
    trainer.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    assert sum(sparsifier.count()) == int(0.3 * sum(sparsifier.sizes))
    strip(network).save(tmp_path / "sparse.keras")
    loaded = keras.saving.load_model(tmp_path / "sparse.keras")
    np.testing.assert_allclose(loaded(X), network(X), atol=1e-5)


def test_scores_of_a_users_model_are_learnt():
    network, *_ = models.from_keras(users_model(), "subnet")
    trs.sparsity.scaled_scores(network)
    trs.sparsity.set_keep_fractions(network, 0.3)
    network.get_layer("regularized").trainable = False
    trained = {}
    for name in ("prune", "finetune"):
        trs.training.Phase(name).begin(network)
        trained[name] = {variable.path for variable in network.trainable_variables}
    assert {path.split("/")[-1] for path in trained["prune"]} == {"scores", "gamma", "beta"}
    assert {"depthwise/kernel", "dilated/kernel", "per_pixel/bias", "logits/kernel"} <= trained["finetune"]
    assert not any("scores" in path or "regularized" in path for path in trained["finetune"])
    trs.training.Phase("prune").begin(network)
    before = {variable.path: np.array(variable) for variable in network.variables}
    trainer = trs.RobustModel(network, trs.objectives.AT(LinfFGSM(0.05)))
    trainer.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    trainer.fit(X, Y, batch_size=8, verbose=0)
    changed = {v.path.split("/")[-1] for v in network.variables if (np.asarray(v) != before[v.path]).any()}
    assert changed == {"scores", "gamma", "beta", "moving_mean", "moving_variance"}


def test_bad_input_is_named():
    model = users_model()
    for arguments, message in (
        ({"kernel": "signed"}, "one of plain, masked, rewiring, subnet, learned_rate. Received: kernel='signed'"),
        ({"kernel": "rewiring"}, "pass their fraction, connectivity=0.1"),
        ({"connectivity": 1.5}, "connectivity=1.5"),
        ({"model": keras.Sequential([keras.layers.Dense(3)])}, "a built keras.Model"),
        ({"model": keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(3, name="d")])}, "d: its inputs are not"),
        ({"model": keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])}, "none at all"),
    ):
        with pytest.raises(ValueError, match=message):
            models.from_keras(**{"model": model, **arguments})


def test_activations_with_weights_stay_and_layers_are_told_apart_by_more_than_their_names():
    first = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, kernel_regularizer="l2", name="d")], name="one")
    second = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, keras.layers.PReLU("ones"), name="p")])
    third = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="d")], name="three")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, third(second(first(inputs))))
    found = models.from_keras(model, kernel="masked")
    assert found.converted == ["three/d"]
    assert isinstance(found.model.get_layer("three").get_layer("d"), layers.MaskedDense)
    assert found.skipped == {
        "one/d": "it has a kernel_regularizer",
        f"{second.name}/p": "its activation PReLU has weights",
    }
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    for other in (found.model, strip(found.model)):
        np.testing.assert_allclose(other(x), model(x), rtol=1e-6, atol=1e-6)


def test_a_layer_shared_by_vectors_and_sequences_stays_and_layers_of_one_name_are_all_reported():
    shared, inputs = keras.layers.Dense(6, name="shared"), keras.Input((6,))
    sequence = shared(keras.layers.Reshape((1, 6))(shared(inputs)))
    blocks = [
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, bias_regularizer="l2", name="d")], name=name)
        for name in ("one", "two")
    ]
    x = keras.layers.Flatten()(sequence)
    for block in blocks:
        x = block(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    found = models.from_keras(model, kernel="masked")
    assert found.converted == ["last"]
    assert found.skipped == {
        "shared": "its inputs are not vectors",
        "one/d": "it has a bias_regularizer",
        "two/d": "it has a bias_regularizer",
    }
    values = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.testing.assert_allclose(found.model(values), model(values), rtol=1e-6, atol=1e-6)
    block = keras.Sequential([keras.Input((1, 6)), shared, keras.layers.Flatten()])  # of its own, on sequences
    x = block(keras.layers.Reshape((1, 6))(shared(inputs)))
    nested = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    assert list(models.from_keras(nested).skipped) == ["shared"]
