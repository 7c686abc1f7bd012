"""Flying Bird+: when the number of connections changes, and by how many."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.sparsity.test_dynamic_sparsity import toy
from tf_robust_sparse import saving, sparsity
from tf_robust_sparse.attacks import LinfFGSM
from tf_robust_sparse.training import RobustModel

RNG = np.random.default_rng(0)
X, Y = RNG.random((16, 6, 6, 1), np.float32), RNG.integers(0, 3, 16)


def logs(gap, loss):
    return {"adversarial_accuracy": 0.5 + gap, "val_robust_accuracy": 0.5, "val_robust_loss": loss}


def test_signs_of_the_last_epochs():
    bird = sparsity.FlyingBirdPlus(0.5, start_epoch=4)
    toy(bird)
    # The gap rises in 2 of the last 4 steps, which is half; the loss fails to fall in 1, then in 2.
    epochs = [(0.4, 9.0), (0.1, 2.0), (0.2, 1.9), (0.1, 1.8), (0.2, 1.8), (0.15, 1.8), (0.1, 1.7)]
    signs = []
    for number, (gap, loss) in enumerate(epochs):
        bird.end_epoch(number, logs(gap, loss))
        signs.append(np.asarray(bird._signs).tolist())
    assert signs == [[False, False]] * 3 + [[False, False], [True, False], [True, True], [False, True]]


@pytest.mark.parametrize(("prune", "grow"), [(False, False), (True, False), (False, True), (True, True)])
def test_numbers_are_those_of_the_published_code(prune, grow):
    bird = sparsity.FlyingBirdPlus(0.5, end_step=400)
    toy(bird)
    bird._signs.assign([prune, grow])
    step, connections = tf.constant(100, tf.int64), tf.constant(1_001, tf.int64)
    dropped, grown = (int(each) for each in bird.numbers(step, connections, 10_000))
    moved = int(np.ceil(0.42751 * 1_001))
    assert dropped == moved + (int(np.ceil(0.4 * 0.42751 * 1_001)) if prune else 0)
    assert grown == (int(moved * 1.05) if grow else moved)
    # A product that is a whole number is not rounded below it.
    bird.number_moved = lambda *_: tf.constant(20, tf.int64)
    assert int(bird.numbers(step, connections, 10_000)[1]) == (21 if grow else 20)
    del bird.number_moved
    dropped, grown = (int(each) for each in bird.numbers(step, connections, 1_001))
    assert dropped == grown == moved  # a dense kernel stays dense


def trained(epochs, directory, resume=False):
    """Keeps what it was after two epochs, or goes on from there."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(12, "relu")])
    model.add(keras.layers.Dense(3))
    bird = sparsity.FlyingBirdPlus(start_epoch=0, window=2, interval=2, late_interval=2, end_step=100)
    report = trs.sparsify(model, 0.3, bird, min_size=1)
    attack = LinfFGSM(0.1)
    trainer = RobustModel(model, trs.objectives.AT(attack), report.sparsifier, validation_attack=attack)
    trainer.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    path = directory / "last.weights.h5"
    if resume:
        saving.load_checkpoint(path, trainer)

    def save(epoch, logs):
        if epoch == 1 and not resume:
            saving.save_checkpoint(path, trainer, {"epoch": 2})

    history = trainer.fit(
        *(X, Y, 4),
        epochs=epochs,
        validation_data=(X, Y[::-1]),
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=save)],
    )
    return trainer, bird, history


def test_training_changes_the_number_of_connections_and_resumes_bit_by_bit(tmp_path):
    whole, bird, history = trained(4, tmp_path)
    assert {"val_robust_loss", "val_robust_accuracy", "adversarial_accuracy"} <= set(history.history)
    bird.check(whole.network)
    assert sum(bird.count()) != bird.budget  # labels of validation are others, so that the gap grows
    resumed, again, _ = trained(2, tmp_path, resume=True)
    expected, found = ([*t.network.weights, *s.masks.weights] for t, s in ((whole, bird), (resumed, again)))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    again.masks.weights[0].assign(~tf.convert_to_tensor(again.masks.weights[0]))
    with pytest.raises(RuntimeError, match=r"masked-out entries|connections, not"):
        again.check(resumed.network)


def test_what_it_watches_must_be_there():
    attack = LinfFGSM(0.1)
    network, _ = toy(sparsity.RigL(0.5), (36, 3))
    for name, value in (("window", 1), ("threshold", 0.0), ("prune_share", -1.0)):
        with pytest.raises(ValueError, match=rf"`{name}` .*\. Received: {name}={value}"):
            sparsity.FlyingBirdPlus(0.5, **{name: value})
    with pytest.raises(ValueError, match="FlyingBirdPlus needs robust accuracy in validation; pass validation_attack"):
        RobustModel(network, trs.objectives.AT(attack), sparsity.FlyingBirdPlus(0.5))
    bird = sparsity.FlyingBirdPlus(0.5)
    trainer = RobustModel(network, trs.objectives.Natural(), bird, validation_attack=attack)
    trainer.compile("sgd")
    x = X.reshape(16, 36)
    with pytest.raises(ValueError, match="pass validation_data"):
        trainer.fit(x, Y, verbose=0)
    for freq in (2, [2]):
        with pytest.raises(ValueError, match=r"in every epoch; leave validation_freq out. Received: validation_freq="):
            trainer.fit(x, Y, validation_data=(x, Y), validation_freq=freq, epochs=2, verbose=0)
    with pytest.raises(ValueError, match="Natural computes no logits of attacked images; use AT, TRADES or MART"):
        trainer.fit(x, Y, validation_data=(x, Y), validation_freq=[1], verbose=0)
