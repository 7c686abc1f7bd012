"""Block sparsity: exact numbers of whole blocks, by mean or largest entry, at once or gradually."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import tiny_network
from tf_robust_sparse import objectives, sparsity

X = np.random.default_rng(0).random((8, 4, 4, 3), "float32")
Y = np.random.default_rng(1).integers(0, 4, 8)


def small():
    """A convolution of 3 colors to 16 channels, and dense layers to 32 units and 4 logits."""
    x = inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(16, 2, kernel_initializer=keras.initializers.HeNormal(0), name="conv")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(32, kernel_initializer=keras.initializers.HeNormal(1), name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="net")


def pooled(weights, rows, columns, pool):
    """The pooled absolute entries of each block, in memory order."""
    matrices = np.abs(weights).reshape(-1, weights.shape[-2], weights.shape[-1])
    positions, inputs, outputs = matrices.shape
    return pool(matrices.reshape(positions, inputs // rows, rows, outputs // columns, columns), axis=(2, 4))


@pytest.mark.parametrize(("block", "pooling"), [((1, 16), "mean"), ((3, 4), "max")])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_largest_blocks_stay(block, pooling, allocation):
    model = small()
    before = {name: np.asarray(model.get_layer(name).kernel) for name in ("conv", "hidden")}
    method = sparsity.BlockPruning(0.3, block, pooling, allocation=allocation)
    report = trs.sparsify(model, sparsifier=method, filters=["conv", "hidden"], min_size=1)
    scores = [pooled(each, *block, getattr(np, pooling)) for each in before.values()]
    numbers = [each.size for each in scores]
    kept = [int(0.3 * number) for number in numbers]
    smallest = [np.sort(each, None)[-count] for each, count in zip(scores, kept, strict=True)]
    if allocation == "global":
        kept = int(0.3 * sum(numbers))
        smallest = [np.sort(np.concatenate([each.ravel() for each in scores]))[-kept]] * 2
    assert report.sparsifier.budget == sum(report.sparsifier.count()) == np.prod(block) * np.sum(kept)
    for (name, weights), score, threshold in zip(before.items(), scores, smallest, strict=True):
        mask = np.repeat(np.repeat(score >= threshold, block[0], 1), block[1], 2).reshape(weights.shape)
        np.testing.assert_array_equal(model.get_layer(name).kernel, weights * mask, err_msg=name)
    method.check(model)
    report.sparsified[0].mask.assign(~np.eye(16, dtype=bool)[:12].reshape(2, 2, 3, 16))
    report.sparsified[0].weight.assign(tf.zeros((2, 2, 3, 16)))
    with pytest.raises(RuntimeError, match="blocks of conv/kernel are neither kept nor pruned as a whole"):
        method.check(model)


def test_a_schedule_ends_at_the_budget_a_restored_run_repeats_it_and_its_model_is_ordinary(tmp_path):
    def fresh():
        schedule = sparsity.schedules.polynomial(0.25, end_step=4, frequency=1)
        method = sparsity.BlockPruning(block=(1, 4), schedule=schedule)
        report = trs.sparsify(small(), 0.25, method, min_size=1)
        trainer = trs.RobustModel(report.sparsifier.network, objectives.Natural(), method)
        trainer.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
        return trainer

    def go_on(trainer):
        trainer.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)

    whole, second = fresh(), fresh()
    whole.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert not whole.sparsifier.within_budget()
    trs.saving.save_checkpoint(tmp_path / "state.h5", whole, {})
    trs.saving.load_checkpoint(tmp_path / "state.h5", second)
    go_on(whole), go_on(second)
    for one, two in zip(whole.variables, second.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    assert whole.sparsifier.count() == [4 * 12, 4 * 288, 4 * 8] and whole.sparsifier.within_budget()
    whole.network.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert {type(layer).__module__.partition(".")[0] for layer in loaded.layers} == {"keras"}
    kernel = np.asarray(loaded.get_layer("hidden").kernel).reshape(-1, 4)
    assert np.isin(np.count_nonzero(kernel, axis=1), [0, 4]).all() and np.count_nonzero(kernel) == 4 * 288


def test_remainders_are_skipped_or_refused():
    model = small()
    before = model.get_weights()
    cases = [
        ({"filters": "kernel"}, r"BlockPruning cannot prune logits/kernel: its 32 inputs by 4 outputs are no multiple"),
        ({"filters": "logits"}, r"BlockPruning can prune none of the kernels. Received: logits/kernel: its 32"),
        ({"connectivity": 0.05}, r"none of the 12 blocks of conv/kernel; pass at least 0.083. Received: conn.*=0.05"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            trs.sparsify(
                model, **{"connectivity": 0.2, "sparsifier": sparsity.BlockPruning(), "min_size": 1, **arguments}
            )
        assert "\n" not in str(raised.value)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    report = trs.sparsify(model, 0.2, sparsity.BlockPruning(), min_size=1)
    assert [each.name for each in report.sparsified] == ["conv/kernel", "hidden/kernel"]
    assert "logits/kernel: dense, its 32 inputs by 4 outputs are no multiple of blocks of 1 by 16" in str(report)


def test_networks_that_blocks_hardly_divide_are_refused():
    with pytest.raises(
        ValueError, match=r"can prune only 1224 of the 2664 entries of tiny.*classifier: its 144 inputs"
    ):
        sparsity.BlockPruning(0.5, (1, 8)).attach(tiny_network("masked"))
    method = sparsity.BlockPruning(0.5, (8, 1))
    method.attach(tiny_network("masked"))
    assert method.describe()["dense"] == ["conv1"] and len(method.kernels) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 16}, "block=16"),
        ({"block": (0, 4)}, r"block=\(0, 4\)"),
        ({"block": (1, 4, 4)}, r"block=\(1, 4, 4\)"),
        ({"pooling": "sum"}, "one of mean, max. Received: pooling='sum'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparsity.BlockPruning(0.1, **arguments)
