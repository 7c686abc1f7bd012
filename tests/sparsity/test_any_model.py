"""`trs.sparsify` on Keras models of all kinds."""

import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored
from tf_robust_sparse import layers, objectives, sparsity
from tf_robust_sparse.sparsity import optimizer_slots

X = np.random.default_rng(0).random((32, 8, 8, 3), "float32")
Y = np.random.default_rng(1).integers(0, 10, 32)


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """A layer of the user's, with a layer, a weight called unlike a kernel, and an embedding of positions inside."""

    def build(self, shape):
        self.inner = keras.layers.Dense(32, name="inner")
        self.inner.build(shape)
        self.table = keras.layers.Embedding(8, 32, name="positions")
        self.table.build(None)
        self.mixing = self.add_weight(name="mixing", shape=(32, 32), initializer="identity")
        self.built = True

    def call(self, x):
        return keras.ops.matmul(self.inner(x) + self.table(keras.ops.arange(8)), self.mixing)


def everything():
    """A classifier of images with layers of every kind."""
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=4, name="depthwise")(x)
    x = keras.layers.SeparableConv2D(24, 3, padding="same", name="separable")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.MaxPooling2D((1, 8))(x)
    x = keras.layers.Reshape((8, 24))(x)
    x = keras.layers.Conv1D(32, 3, padding="same", name="conv1d")(x)
    x = keras.layers.TimeDistributed(keras.layers.Dense(32, name="part"), name="each")(x)
    x = Block(name="block")(x)
    x = x + keras.layers.MultiHeadAttention(4, 8, name="attention")(x, x)
    x = keras.layers.LayerNormalization(name="layer_norm")(x)
    shared = keras.layers.Dense(32, activation="relu", name="shared")
    x = shared(shared(x))
    x = keras.layers.Bidirectional(keras.layers.LSTM(16, name="lstm"), name="recurrent")(x)
    inner = keras.Sequential(
        [keras.Input((32,)), keras.layers.Dense(32, activation="relu", name="deep")], name="nested"
    )
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(inner(x)))


def small(name="cnn", seed=0):
    """A convolutional network of plain Keras layers."""
    make = lambda i: keras.initializers.HeNormal(seed + i)  # noqa: E731
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", kernel_initializer=make(0), name="conv")(x)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D(4)(x))
    x = keras.layers.Dense(32, activation="relu", kernel_initializer=make(1), name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(10, kernel_initializer=make(2), name="logits")(x), name=name)


def trained(model, sparsifier, optimizer="sgd", epochs=1, **arguments):
    trainer = trs.RobustModel(model, objectives.Natural(), sparsifier)
    trainer.compile(optimizer, **arguments)
    trainer.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return trainer


def test_what_is_pruned_and_what_not():
    report = trs.sparsify(everything(), 0.1)
    skipped = {each.name: each.reason for each in report.skipped}
    assert [each.name for each in report.sparsified] == [
        "conv/kernel",
        "separable/pointwise_kernel",
        "conv1d/kernel",
        "each/part/kernel",
        "block/inner/kernel",
        *[f"attention/{part}/kernel" for part in ("query", "key", "value", "attention_output")],
        "shared/kernel",
        *[f"recurrent/{way}_lstm/lstm_cell/{k}kernel" for way in ("forward", "backward") for k in ("", "recurrent_")],
        "nested/deep/kernel",
        "logits/kernel",
    ]
    assert skipped["depthwise/kernel"] == "a depthwise kernel; depthwise=True prunes it"
    assert "separable/depthwise_kernel" in skipped
    assert skipped["block/positions/embeddings"] == "an embedding; embeddings=True prunes it"
    assert skipped["block/mixing"] == "its name is not that of a kernel; name it in filters='mixing' to prune it"
    assert len(skipped) == 4
    query = next(each for each in report.sparsified if each.name == "attention/query/kernel")
    output = next(each for each in report.sparsified if each.name == "attention/attention_output/kernel")
    assert query.sides == (32, 4 * 8) and output.sides == (4 * 8, 32)
    assert "conv/kernel: 43 of 432 entries" in str(report) and "block/mixing: dense, its name is not" in str(report)
    counted = trs.sparsity.statistics.summary(report.sparsifier.network)
    assert str(report).endswith(f", {100 * counted['connectivity']:.2f} % of {counted['prunable']}")


def test_filters_and_what_else_is_chosen():
    def names(**arguments):
        return [each.name for each in trs.sparsify(everything(), 0.1, **arguments).sparsified]

    assert names(filters="attention") == [
        f"attention/{part}/kernel" for part in ("query", "key", "value", "attention_output")
    ]
    assert names(filters=["^conv/", "mixing"]) == ["conv/kernel", "block/mixing"]
    assert names(filters=lambda name: name.startswith("shared")) == ["shared/kernel"]
    more = names(depthwise=True, embeddings=True, min_size=1)
    assert {"depthwise/kernel", "separable/depthwise_kernel", "block/positions/embeddings"} <= set(more)
    frozen = everything()
    frozen.get_layer("conv").trainable = False
    report = trs.sparsify(frozen, 0.1)
    assert ("conv/kernel", "frozen") in report.skipped


@pytest.mark.parametrize(
    "compiled", [*(pytest.param(how, marks=pytest.mark.full) for how in ("graph", "xla")), "eager", "mirrored"]
)
def test_counts_are_exact_and_nothing_comes_back(compiled):
    strategy = mirrored() if compiled == "mirrored" else tf.distribute.get_strategy()
    with strategy.scope():
        model = everything() if compiled == "eager" else small()
        sparsifier = sparsity.RigL(interval=3, end_step=100, seed=1)
        report = trs.sparsify(model, 0.1, sparsifier, embeddings=True)  # whose gradients are slices
        optimizer = keras.optimizers.Adam(0.01, global_clipnorm=1.0)
        how = {"eager": {"run_eagerly": True}, "xla": {"jit_compile": True}}.get(compiled, {})
        trainer = trained(model, report.sparsifier, optimizer, **how)
    sizes = [each.size for each in report.sparsified]
    assert sum(report.sparsifier.count()) == int(sum(sizes) * 0.1) == report.sparsifier.budget
    assert report.connectivity == pytest.approx(0.1, abs=1e-3)
    report.sparsifier.check(model)
    assert sum(sparsifier.turnover()["grown"].values()) > 0
    for kernel in report.sparsified:
        off = ~np.asarray(kernel.mask)
        assert (np.asarray(kernel.weight)[off] == 0).all()
        slots = optimizer_slots.slots(optimizer, kernel.weight)
        assert len(slots) == 2 and all((np.asarray(slot)[off] == 0).all() for slot in slots)
    if compiled == "mirrored":
        for variable in trainer.variables:
            first, second = strategy.experimental_local_results(variable.value)
            np.testing.assert_array_equal(first, second, err_msg=variable.path)


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.full)])
def test_steps_are_those_of_masked_layers(optimizer):
    theirs = small()
    x = inputs = keras.Input((8, 8, 3))
    x = layers.MaskedConv2D(16, 3, padding="same", activation="relu")(x)
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D(4)(x))
    x = layers.MaskedDense(32, activation="relu")(x)
    ours = keras.Model(inputs, layers.MaskedDense(10)(x))
    pairs = [
        (one, two)
        for one, two in zip(theirs.layers, ours.layers, strict=True)
        if isinstance(one, (keras.layers.Dense, keras.layers.Conv2D))
    ]
    for one, two in pairs:
        two.kernel.assign(one.kernel)
    report = trs.sparsify(theirs, 0.2, sparsity.MagnitudePruning(allocation="global"))
    arguments = {"learning_rate": 0.05, "weight_decay": 0.01}
    trained(theirs, report.sparsifier, keras.optimizers.get({"class_name": optimizer, "config": arguments}), 5)
    sparsifier = sparsity.MagnitudePruning(0.2, allocation="global")
    trained(ours, sparsifier, keras.optimizers.get({"class_name": optimizer, "config": arguments}), 5)
    assert sum(report.sparsifier.count()) == sum(sparsifier.count()) == int(0.2 * sum(sparsifier.sizes))
    for one, two in pairs:
        np.testing.assert_allclose(one.kernel, two.kernel, atol=1e-6)


@pytest.mark.full
def test_a_restored_run_goes_on_bit_by_bit(tmp_path):
    def begun():
        model = small()
        report = trs.sparsify(model, 0.1, sparsity.RigL(interval=2, end_step=100, seed=2))
        trainer = trs.RobustModel(model, objectives.Natural(), report.sparsifier)
        trainer.compile(keras.optimizers.Adam(0.01))
        return trainer

    def go_on(trainer):
        trainer.fit(X, Y, batch_size=8, shuffle=False, verbose=0)

    whole, first, second = begun(), begun(), begun()
    go_on(whole), go_on(first)
    trs.saving.save_checkpoint(tmp_path / "state.h5", first, {})
    trs.saving.load_checkpoint(tmp_path / "state.h5", second)
    go_on(whole), go_on(second)
    assert sum(whole.sparsifier.turnover()["grown"].values()) > 0
    for one, two in zip(whole.variables, second.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)


@pytest.mark.full
def test_mobile_net_trains_robustly_and_loads_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    report = trs.sparsify(model, connectivity=0.1)
    trainer = trs.RobustModel(
        model, objectives.TRADES(trs.attacks.LinfPGD(8 / 255, 2 / 255, num_steps=1)), report.sparsifier
    )
    trainer.compile("adam")
    x = np.random.default_rng(0).random((16, 32, 32, 3), "float32")
    trainer.fit(x, Y[:16], batch_size=8, verbose=0)
    report.sparsifier.check(model)
    model.save("sparse.keras")
    assert_served(model, x)


def test_the_page_runs_as_written_and_its_model_loads_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/any_model.md").read_text()
    first, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(first, names)
    assert_served(names["model"], names["x"][:16])
    for snippet in others:  # each with a method of its own
        exec(snippet, names)
        names["report"].sparsifier.check(names["model"])


@pytest.mark.parametrize("page", ["coming_from_tfmot", "adding_a_sparsifier"])
def test_the_other_pages_run_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / f"docs/{page}.md").read_text()
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, names)
    names["report"].sparsifier.check(names["model"])
    off = ~np.asarray(names["report"].sparsifier.kernels[-1].mask)
    assert off.any() and not np.asarray(names["model"].layers[-1].kernel)[off].any()


def test_an_optimizer_that_has_trained_before_forgets_what_is_off():
    model, optimizer = small(), keras.optimizers.SGD(0.1, momentum=0.9)
    trained(model, None, optimizer)
    report = trs.sparsify(model, connectivity=0.1)
    trainer = trs.RobustModel(model, objectives.Natural(), report.sparsifier)
    trainer.compile(optimizer)
    for _ in range(2):
        for kernel in report.sparsified:
            [slot] = optimizer_slots.slots(optimizer, kernel.weight)
            off = ~np.asarray(kernel.mask)
            assert not np.asarray(slot)[off].any() and np.asarray(slot)[~off].any()
        trainer.fit(X, Y, batch_size=8, verbose=0)


def test_statistics_of_a_model_of_plain_layers():
    model = small()
    report = trs.sparsify(model, connectivity=0.1)
    found = sparsity.statistics.summary(model)
    kept = {each["name"]: each["nonzero"] for each in found["layers"]}
    for kernel, count in zip(report.sparsifier.kernels, report.sparsifier.count(), strict=True):
        assert kept[kernel.name] == count
    assert found["total_weights"] == model.count_params()
    assert found["remaining_weights"] == found["total_weights"] - found["prunable"] + found["nonzero"]


def assert_served(model, x):
    """Checks that sparse.keras and an export compute what the model does, and that the file does not name us."""
    logits = model(x, training=False)
    with zipfile.ZipFile("sparse.keras") as file:
        assert b"tf_robust_sparse" not in file.read("config.json")
    np.testing.assert_allclose(keras.saving.load_model("sparse.keras")(x, training=False), logits, atol=1e-6)
    model.export("serve", verbose=False)
    served = tf.saved_model.load("serve")
    np.testing.assert_allclose(served.serve(tf.constant(x)), logits, atol=1e-5)


def quantized():
    model = small()
    model.get_layer("hidden").quantize("int8")
    return model


def with_lora():
    model = small()
    model.get_layer("hidden").enable_lora(2)
    return model


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(4)]), {}, "must be built.*not built"),
        (lambda: "net.keras", {}, "must be a keras.Model. Received: 'net.keras'"),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]),
            {},
            "no variable.*no kernel at all",
        ),
        (small, {"min_size": 10**6}, "no variable that can be pruned. Received: conv/kernel: 432 entries, fewer"),
        (small, {"filters": "transformer"}, "matches no variable of cnn, whose variables are conv/kernel"),
        (small, {"filters": "("}, r"regular expression.*filters='\('"),
        (small, {"connectivity": 1.5}, r"in \(0, 1\].*connectivity=1.5"),
        (small, {"connectivity": 1e-4}, "leave an entry in each of the 3 kernels, 2800 entries in all"),
        (small, {"sparsifier": sparsity.ConnectivitySampling(0.1)}, "must hold masks"),
        (
            small,
            {"sparsifier": sparsity.ChannelMagnitudePruning(), "filters": "logits"},
            "No kernel but the last is pruned",
        ),
        (
            lambda: keras.Sequential([keras.Input((4, 8)), keras.layers.LSTM(9)]),
            {"sparsifier": sparsity.ChannelMagnitudePruning(), "connectivity": 0.5},
            "none of the kernels.*the outputs of a LSTMCell are not known to be channels",
        ),
        (
            small,
            {"sparsifier": sparsity.RigL(0.2)},
            "the connectivity once.*connectivity=0.1 in .* and 0.2 in",
        ),
        (quantized, {}, "Quantized and LoRA layers.*Dense hidden with quantization_mode='int8'"),
        (with_lora, {}, "Quantized and LoRA layers.*Dense hidden with lora_enabled=True"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(model, arguments, message):
    model = model()
    before = model.get_weights() if isinstance(model, keras.Model) else []
    with pytest.raises(ValueError, match=message) as raised:
        trs.sparsify(model, **{"connectivity": 0.1, **arguments})
    assert "\n" not in str(raised.value)
    for one, two in zip(before, model.get_weights() if before else [], strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_sparsifier_belongs_to_one_model_and_refuses_what_revives_weights():
    with pytest.raises(ValueError, match=r"or any model after trs.sparsify\(model, connectivity, sparsifier\)"):
        trs.RobustModel(small(), objectives.Natural(), sparsity.RigL(0.1))
    report = trs.sparsify(small("first"), 0.1)
    with pytest.raises(ValueError, match=r"belongs to first already; make a new MagnitudePruning. Received: second"):
        trs.sparsify(small("second"), 0.1, report.sparsifier)
    with pytest.raises(ValueError, match=r"holds the state of first; make a new Mag.*Received: second"):
        trs.RobustModel(small("second"), objectives.Natural(), report.sparsifier)
    trainer = trs.RobustModel(report.sparsifier.network, objectives.Natural(), report.sparsifier)
    with pytest.raises(ValueError, match="use_ema=False"):
        trainer.compile(keras.optimizers.Adam(use_ema=True))


def test_a_model_of_two_inputs_is_made_sparse_and_not_trained(caplog):
    one, two = keras.Input((16,)), keras.Input((16,))
    model = keras.Model([one, two], keras.layers.Dense(32)(keras.layers.Concatenate()([one, two])))
    with caplog.at_level("WARNING"):
        report = trs.sparsify(model, 0.1)
    assert "has 2 inputs. It is made sparse, but RobustModel trains only models with one input" in caplog.text
    assert sum(report.sparsifier.count()) == int(32 * 32 * 0.1)
    with pytest.raises(ValueError, match="must have one input, the images, and one output"):
        trs.RobustModel(model, trs.objectives.Natural(), report.sparsifier)
