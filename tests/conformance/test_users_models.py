"""What every sparsifier that holds masks promises for a model of plain Keras layers."""

import itertools

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tf_robust_sparse import sparsity
from tf_robust_sparse.attacks import LinfFGSM
from tf_robust_sparse.evaluation.runtimes import litert_function, onnx_function

X = np.random.default_rng(0).random((16, 8, 8, 3), "float32")
Y = np.random.default_rng(1).integers(0, 10, 16)


def cnn():
    """Convolutions and a skip connection."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    y = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(keras.layers.BatchNormalization()(x))
    x = keras.layers.Add()([x, y])
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))


def vit():
    """A vision transformer of one block, on patches of 4x4 pixels."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Reshape((4, 32))(keras.layers.Conv2D(32, 4, strides=4, name="patches")(inputs))
    normal = keras.layers.LayerNormalization()(x)
    x = x + keras.layers.MultiHeadAttention(2, 16, name="attention")(normal, normal)
    hidden = keras.layers.Dense(64, activation="gelu")(keras.layers.LayerNormalization()(x))
    x = x + keras.layers.Dense(32)(hidden)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x)))


def lstm():
    """Rows of pixels as a sequence."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.LSTM(16)(keras.layers.Reshape((8, 24))(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Dense(32, activation="relu")(x)))


def mobile_net():
    return keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)


MODELS = {"cnn": cnn, "vit": vit, "lstm": lstm, "mobile_net": mobile_net}
SPARSIFIERS = {
    "magnitude": sparsity.MagnitudePruning,
    "magnitude, gradual": lambda: sparsity.MagnitudePruning(
        schedule=sparsity.schedules.polynomial(0.2, end_step=3, frequency=1), allocation="global"
    ),
    "set": lambda: sparsity.SET(interval=2, end_step=100),
    "rigl": lambda: sparsity.RigL(interval=2, end_step=100),
    "flying bird": lambda: sparsity.FlyingBird(interval=2, late_interval=2, end_step=100),
    "n:m": lambda: sparsity.NM(1, 4),
    "block": lambda: sparsity.BlockPruning(block=(1, 2)),
    "obs": lambda: sparsity.OBS(X),
}
# By default a schedule and connections that move, each on a small model; tests/sparsity resumes the others.
DEFAULT = {("magnitude, gradual", "vit"), ("rigl", "cnn"), ("set", "lstm")}
PAIRS = [
    pytest.param(name, kind, marks=() if (name, kind) in DEFAULT else pytest.mark.full)
    for name, kind in itertools.product(SPARSIFIERS, MODELS)
]


def begun(name, kind):
    keras.utils.set_random_seed(3)
    model = MODELS[kind]()
    if name == "obs" and kind == "mobile_net":
        report = trs.sparsify(model, 0.2, sparsity.OBS(np.tile(X, (1, 4, 4, 1))))
    else:
        report = trs.sparsify(model, None if name == "n:m" else 0.2, SPARSIFIERS[name]())
    trainer = trs.RobustModel(model, trs.objectives.AT(LinfFGSM(0.05)), report.sparsifier, seed=1)
    # Of the small models one is trained by compiled steps: tests/sparsity compiles those of each sparsifier.
    eager = kind != "mobile_net" and name != "rigl"
    trainer.compile(keras.optimizers.Adam(0.01, global_clipnorm=1.0), run_eagerly=eager)
    return trainer, report


def train(trainer):
    x = np.tile(X, (1, 4, 4, 1)) if trainer.network.input_shape[1] == 32 else X
    trainer.fit(x, Y, batch_size=4, shuffle=False, verbose=0)
    return x


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_counts_resume_and_files(name, kind, tmp_path):
    (whole, report), (second, again) = begun(name, kind), begun(name, kind)
    train(whole)
    trs.saving.save_checkpoint(tmp_path / "state.h5", whole, {})
    x = train(whole)
    trs.saving.load_checkpoint(tmp_path / "state.h5", second)
    train(second)
    for one, two in zip(whole.variables, second.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    sparsifier = report.sparsifier
    sparsifier.check(whole.network)
    assert again.sparsifier.count() == sparsifier.count() and sparsifier.within_budget()
    rounded = len(sparsifier.kernels) * 2 if name in ("magnitude", "block") else 0  # each kernel rounds down
    assert sparsifier.budget - rounded <= sum(sparsifier.count()) <= sparsifier.budget
    for kernel in report.sparsified:
        assert (np.asarray(kernel.weight)[~np.asarray(kernel.mask)] == 0).all()
    whole.network.save(tmp_path / "sparse.keras")
    loaded = keras.saving.load_model(tmp_path / "sparse.keras")
    np.testing.assert_allclose(loaded(x), whole.network(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["cnn", pytest.param("vit", marks=pytest.mark.full)])
def test_other_runtimes_agree(kind, tmp_path):
    trainer, _ = begun("magnitude", kind)
    train(trainer)
    model = trainer.network
    logits = np.asarray(model(X))
    found = litert_function(trs.export_litert(model, tmp_path / "sparse.tflite"), 1)(X)
    np.testing.assert_allclose(found, logits, atol=1e-4)
    if kind == "cnn":  # of layers that our ONNX files hold
        pytest.importorskip("onnxruntime")
        found = onnx_function(trs.export_onnx(model, tmp_path / "sparse.onnx", sparse=True), 1)(X)
        np.testing.assert_allclose(found, logits, atol=1e-4)
