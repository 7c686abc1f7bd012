"""Perturbations that are kept for every image: moved with it, stepped once, written back, and resumed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse import data, layers, objectives, saving
from tf_robust_sparse.objectives.mixing import boxes, mixed, mixed_labels, unmixed
from tf_robust_sparse.training import ATTA, RobustModel, StoredRobustModel, coupled, stored_model
from tf_robust_sparse.training.crops import block_means, cropped, draw_crops, put_back

X, Y = tiny_images(32)
EPSILON, STEP = 0.1, 0.04
ROUNDING = 1e-3 * EPSILON  # float16


def model_of(network=None, scope=None, seed=0, eager=True, **settings):
    with scope or tf.name_scope("none"):
        network = tiny_network("plain") if network is None else network
        model = StoredRobustModel(network, ATTA(len(X), EPSILON, STEP, **settings), seed=seed)
        model.compile(coupled("sgd", 0.05, 1e-4), run_eagerly=eager and scope is None)
    return model


def batches(epochs=1, batch_size=16, first_epoch=0, parts=1):
    return data.train_dataset(
        X, Y, batch_size, augmentation=None, epochs=epochs, first_epoch=first_epoch, with_index=True, parts=parts
    )


def stored(model):
    return np.asarray(model.tables["perturbations"], "float32")


def constant_network():
    """Logits that do not depend on the image."""
    x = keras.Input((12, 12, 1))
    h = keras.layers.Flatten()(x)
    network = keras.Model(x, layers.PlainDense(10, kernel_initializer="zeros", name="out")(h))
    network.get_layer("out").kernel.trainable = False
    return network


def test_a_crop_and_its_return_restore_the_window_exactly():
    images = np.random.default_rng(0).random((50, 20, 20, 3), "float32")
    offsets, mirrored_ = draw_crops(50, [1, 2], True)
    flips = mirrored_.numpy()
    assert set(np.unique(offsets)) == set(range(8)) and 0 < flips.mean() < 1
    parts = cropped(images, offsets, mirrored_, (12, 12))
    for image, part, (row, column), flipped in zip(images, parts.numpy(), offsets.numpy(), flips, strict=True):
        window = image[row : row + 12, column : column + 12]
        np.testing.assert_array_equal(part, window[:, ::-1] if flipped else window)
    np.testing.assert_array_equal(put_back(tf.constant(images), parts, offsets, mirrored_), images)
    changed = put_back(tf.constant(images), parts + 1, offsets, mirrored_).numpy()
    for image, new, (row, column) in zip(images, changed, offsets.numpy(), strict=True):
        moved = new - image
        np.testing.assert_allclose(moved[row : row + 12, column : column + 12], 1, atol=1e-6)
        moved[row : row + 12, column : column + 12] = 0
        assert not moved.any()  # nothing outside the window


def test_without_a_gradient_only_the_pixel_range_changes_what_is_stored():
    model = model_of(constant_network())
    before = stored(model)
    assert np.abs(before).max() <= EPSILON and np.abs(before).max() > 0.99 * EPSILON
    assert abs(before.mean()) < 0.01 * EPSILON
    index, seed = tf.range(16, dtype=tf.int64), tf.stack([0, 0])
    model.fit(tf.data.Dataset.from_tensors((X[:16], Y[:16], index)), verbose=0)
    after = stored(model)
    np.testing.assert_array_equal(after[16:], before[16:])
    from tf_robust_sparse.layers.noise import fold_in

    offsets, _ = draw_crops(16, fold_in(seed, 0xC20), True)
    padded = np.pad(X[:16], ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=0.5)
    clipped = np.clip(padded + before[:16], 0, 1) - padded
    for i, (row, column) in enumerate(offsets.numpy()):
        window = np.s_[i, row : row + 12, column : column + 12]
        np.testing.assert_allclose(after[window], clipped[window], atol=ROUNDING)
        outside = np.ones(before.shape[1:], bool)
        outside[row : row + 12, column : column + 12] = False
        np.testing.assert_array_equal(after[i][outside], before[i][outside])


def test_one_step_goes_up_the_loss_from_what_was_stored():
    model = model_of(batch_norm="inference")
    x, y = tf.constant(X[:8]), tf.constant(Y[:8])
    start = tf.random.stateless_uniform(x.shape, (1, 2), -EPSILON, EPSILON)
    with layers.cached_kernels(model.network):
        delta = model._stepped(model.objective, x, y, start)[0].numpy()
    assert np.abs(delta).max() <= EPSILON + 1e-6
    assert (x + delta).numpy().min() >= 0 and (x + delta).numpy().max() <= 1

    def loss(perturbation):
        return keras.losses.sparse_categorical_crossentropy(y, model.network(x + perturbation), from_logits=True)

    assert np.mean(loss(delta)) > np.mean(loss(np.clip(x + start, 0, 1) - x))
    assert np.abs(delta - start).max() <= max(STEP, EPSILON) + 1e-6


def test_the_second_epoch_starts_from_what_the_first_stored():
    model = model_of()
    model.fit(batches(1), steps_per_epoch=2, verbose=0)
    kept = stored(model)
    assert np.abs(kept).max() <= EPSILON
    rows = model._stored(
        tf.constant([5, 9], tf.int64), tf.zeros((2, 20, 20, 1)), tf.constant([0, 1], tf.int64), EPSILON
    )
    np.testing.assert_array_equal(rows, kept[[5, 9]])
    model.fit(batches(2, first_epoch=1), steps_per_epoch=2, verbose=0)
    assert (stored(model) != kept).any() and np.abs(stored(model)).max() <= EPSILON


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    whole, half = model_of(), model_of(tiny_network("plain"))
    half.network.set_weights(whole.network.get_weights())
    whole.fit(batches(2), epochs=2, steps_per_epoch=2, verbose=0)
    half.fit(batches(2), steps_per_epoch=2, verbose=0)
    saving.save_checkpoint(tmp_path / "a.weights.h5", half, {})
    again = model_of(tiny_network("plain"), seed=0)
    saving.load_checkpoint(tmp_path / "a.weights.h5", again)
    again.fit(batches(2, first_epoch=1), steps_per_epoch=2, verbose=0)
    for one, two in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(stored(whole), stored(again))


def test_each_of_two_replicas_keeps_its_half_and_they_train_as_one(tmp_path):
    one = model_of(eager=False, batch_norm="inference")
    two = model_of(scope=mirrored().scope(), batch_norm="inference")
    for network in (one.network, two.network):
        network.get_layer("bn1").trainable = False  # batches of half the size have other statistics
    with mirrored().scope():
        two.network.set_weights(one.network.get_weights())
    np.testing.assert_array_equal(stored(one), stored(two))  # as drawn
    before = stored(one)
    for model in (one, two):
        model.fit(batches(1, parts=2), steps_per_epoch=2, verbose=0)
    parts = mirrored().experimental_local_results(two.tables["perturbations"]._part.value)
    assert [part.shape[0] for part in parts] == [16, 16] and (parts[0].numpy() != parts[1].numpy()).any()
    np.testing.assert_array_equal(stored(two)[0::2], parts[0].numpy().astype("float32"))
    np.testing.assert_array_equal(stored(two)[1::2], parts[1].numpy().astype("float32"))
    moved = np.abs(stored(one) - before) > ROUNDING
    assert moved.mean() > 0.1
    assert (np.abs(stored(two) - stored(one)) > ROUNDING).mean() < 0.01  # a sign may turn where a gradient is 0
    saving.save_checkpoint(tmp_path / "two.weights.h5", two, {})
    kept = stored(two)
    for scope in (tf.name_scope("none"), mirrored().scope()):  # in the order of the examples, for any number of them
        other = model_of(scope=scope, seed=7, batch_norm="inference")
        assert (stored(other) != kept).any()
        saving.load_checkpoint(tmp_path / "two.weights.h5", other)
        np.testing.assert_array_equal(stored(other), kept)


def test_examples_of_another_replica_are_refused():
    model = model_of(scope=mirrored().scope(), batch_norm="inference")
    with pytest.raises(tf.errors.InvalidArgumentError, match="each replica needs its own examples"):
        model.fit(batches(1), steps_per_epoch=2, verbose=0)


def test_parts_of_a_batch_hold_the_examples_of_their_replica():
    found = [index.numpy() for _, _, index in batches(2, parts=4)]
    for index in found:
        for part in range(4):
            assert (index[4 * part : 4 * part + 4] % 4 == part).all()
    for epoch in (found[:2], found[2:]):
        assert sorted(np.concatenate(epoch)) == list(range(32))
    assert (np.concatenate(found[:2]) != np.concatenate(found[2:])).any()
    with pytest.raises(ValueError, match="`parts` must divide full batches"):
        batches(parts=3)


def test_it_learns_and_traces_once():
    model = model_of(eager=False)
    loss = model.fit(batches(8), epochs=8, steps_per_epoch=2, verbose=0).history["loss"]
    assert loss[-1] < loss[0]


def test_without_carrying_every_batch_starts_at_random():
    model = model_of(carry=False)
    assert not model.tables
    model.fit(batches(1), steps_per_epoch=2, verbose=0)
    padded = tf.zeros((4, 20, 20, 1))
    starts = [model._stored(None, padded, tf.constant([0, step], tf.int64), EPSILON).numpy() for step in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any() and np.abs(starts).max() <= EPSILON


def test_large_images_keep_one_value_per_block():
    images = np.random.default_rng(0).random((2, 20, 13, 1), "float32")
    means = block_means(tf.constant(images), 8).numpy()
    assert means.shape == (2, 3, 2, 1)
    np.testing.assert_allclose(means[:, 2, 1, 0], images[:, 16:20, 8:13, 0].mean((1, 2)), rtol=1e-5)
    x = keras.Input((168, 168, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    model = StoredRobustModel(
        keras.Model(x, layers.PlainDense(3)(pooled)), ATTA(4, EPSILON, STEP, batch_norm="inference")
    )
    assert stored(model).shape == (4, 22, 22, 1)
    model.compile("sgd")
    big = np.random.default_rng(1).random((4, 168, 168, 1), "float32")
    model.fit(tf.data.Dataset.from_tensors((big, np.int64([0, 1, 2, 0]), np.arange(4))), verbose=0)
    assert np.isfinite(stored(model)).all()


@pytest.mark.parametrize("one", [False, True])
def test_boxes_come_from_a_partner_and_go_back_to_it(one):
    images = tf.constant(np.random.default_rng(0).random((40, 12, 12, 2), "float32"))
    partner, box = (np.asarray(value) for value in boxes(40, [1, 2], (12, 12), one))
    assert sorted(partner) == list(range(40)) and box.shape == (40, 12, 12, 1)
    assert (len(np.unique(box, axis=0)) == 1) == one
    for each in box[..., 0]:  # a rectangle of sides in proportion to those of the image
        rows, columns = each.any(1), each.any(0)
        assert each.sum() == rows.sum() * columns.sum() and rows.sum() == columns.sum() < 12
    new = mixed(images, partner, box).numpy()
    labels = mixed_labels(np.arange(40) % 10, 10, partner, box).numpy()
    for i in range(40):
        np.testing.assert_array_equal(new[i], np.where(box[i], images[partner[i]], images[i]))
        share = box[i].mean()
        expected = (1 - share) * np.eye(10)[i % 10] + share * np.eye(10)[partner[i] % 10]
        np.testing.assert_allclose(labels[i], expected, atol=1e-6)
    # What was not changed comes back as it was, whether a pixel was in one image, in two or in none.
    np.testing.assert_allclose(unmixed(tf.constant(new), images, partner, box), images, atol=1e-6)
    changed = new + np.arange(40, dtype="float32")[:, None, None, None]
    back = unmixed(tf.constant(changed), images, partner, box).numpy()
    for i in range(40):
        (giver,) = np.flatnonzero(partner == i)
        own, given = ~box[i, ..., 0], box[giver, ..., 0]
        added = (back[i] - images[i]).numpy()[..., 0]
        np.testing.assert_allclose(added[own & ~given], i, atol=1e-5)
        np.testing.assert_allclose(added[~own & given], giver, atol=1e-5)
        np.testing.assert_allclose(added[own & given], (i + giver) / 2, atol=1e-5)
        np.testing.assert_allclose(added[~own & ~given], 0, atol=1e-5)


@pytest.mark.parametrize("mix", ["cutmix", pytest.param("acutmix", marks=pytest.mark.full)])
def test_training_with_boxes_learns_and_keeps_perturbations_in_the_ball(mix):
    model = model_of(mix=mix)
    before = stored(model)
    loss = model.fit(batches(8), epochs=8, steps_per_epoch=2, verbose=0).history["loss"]
    assert loss[-1] < loss[0] and (stored(model) != before).any() and np.abs(stored(model)).max() <= EPSILON
    assert model.objective.describe()["mix"] == mix


def test_soft_targets_are_means_that_start_at_the_labels():
    model = model_of(soft_targets=True)
    aims = []
    original = model._soft_targets

    def recorded(index, y, probabilities):
        before = model.tables["soft_targets"].read(index)
        found = original(index, y, probabilities)
        after = model.tables["soft_targets"].read(index)
        tf.py_function(
            lambda *values: aims.append([np.array(v) for v in values]), [before, probabilities, after, found, y], []
        )
        return found

    model._soft_targets = recorded
    model.fit(batches(2), epochs=2, steps_per_epoch=2, verbose=0)
    assert len(aims) == 4
    for step, (before, probabilities, after, found, y) in enumerate(aims):
        labels = np.eye(10)[y]
        assert (before == 0).all() if step < 2 else np.allclose(before.sum(1), 1, atol=1e-5)
        expected = 0.9 * (labels if step < 2 else before) + 0.1 * probabilities
        np.testing.assert_allclose(after, expected, atol=1e-6)
        np.testing.assert_allclose(found, 0.1 * labels + 0.9 * expected, atol=1e-6)


def test_the_loss_aims_at_the_soft_targets():
    model = model_of(batch_norm="inference")
    logits = model.network(X[:8], training=True)
    targets = tf.nn.softmax(tf.random.stateless_normal((8, 10), (1, 2)))
    aimed = stored_model._aiming_at(objectives.Reweighted(model.objective, "prob"), targets).objective
    losses, *_ = aimed.loss(model.network, X[:8], tf.constant(Y[:8]), tf.constant(X[:8]))
    np.testing.assert_allclose(losses, -(targets * tf.nn.log_softmax(logits)).numpy().sum(1), rtol=1e-5)
    assert model.objective.targets is None


@pytest.mark.parametrize("value", [0.1, 0.2, 0.3, 3 * 0.1, 8 / 255, 1.0])
def test_half_precision_never_leaves_the_ball(value):
    assert value * 0.999 < stored_model._float16_below(value) <= value


def test_perturbations_grow_with_the_radius():
    schedule = objectives.TabledEpsilon((3 * EPSILON,), steps_per_epoch=2)
    objective = objectives.ScheduledRadius(ATTA(len(X), EPSILON, STEP), schedule)
    model = StoredRobustModel(tiny_network("plain"), objective)
    assert np.abs(stored(model)).max() <= EPSILON  # they begin in the ball of the objective
    model.compile(coupled("sgd", 0.05, 1e-4))
    model.fit(batches(4), epochs=4, steps_per_epoch=2, verbose=0)
    assert 1.5 * EPSILON < np.abs(stored(model)).max() <= 3 * EPSILON


def test_the_radius_may_change_from_epoch_to_epoch():
    schedule = objectives.TabledEpsilon((0.0, EPSILON / 2, EPSILON), steps_per_epoch=2)
    network = tiny_network("plain")
    model = StoredRobustModel(network, objectives.ScheduledRadius(ATTA(len(X), EPSILON, STEP), schedule))
    model.compile(coupled("sgd", 0.05, 1e-4))
    largest = []
    stepped = model._stepped

    def recorded(settings, x, labels, delta):
        found = stepped(settings, x, labels, delta)
        tf.py_function(
            lambda *v: largest.append([float(each) for each in v]),
            [tf.reduce_max(tf.abs(found[0])), settings.step_size],
            [],
        )
        return found

    model._stepped = recorded
    model.fit(batches(4), epochs=4, steps_per_epoch=2, verbose=0)
    for step, (perturbation, step_size) in enumerate(largest):
        radius = schedule.radii[min(step // 2, 2)]
        assert perturbation == pytest.approx(radius, abs=1e-6) and step_size == pytest.approx(radius / EPSILON * STEP)


def test_examples_may_have_weights():
    network = tiny_network("plain")
    objective = objectives.Reweighted(ATTA(len(X), EPSILON, STEP), "comp_nat_prob")
    model = StoredRobustModel(network, objective)
    model.compile("sgd")
    assert np.isfinite(model.fit(batches(1), steps_per_epoch=2, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ATTA(0), "`num_examples` must be a positive integer"),
        (lambda: ATTA(5, epsilon=8), "`epsilon` is a radius in pixels"),
        (lambda: ATTA(5, batch_norm="eval"), '`batch_norm` must be "training" or "inference"'),
        (lambda: ATTA(5, mix="mixup"), "`mix` must be None or one of cutmix, acutmix"),
        (lambda: ATTA(5, mix="cutmix", soft_targets=True), "for whole images"),
        (lambda: StoredRobustModel(tiny_network(), objectives.Natural()), "must be ATTA"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_have_mean_one_and_wait():
    objective = objectives.Reweighted(objectives.Natural(), "max_prob")
    logits = tf.constant([[2.0, 0.0], [0.0, 0.5], [1.0, -1.0]])
    weights = objective.weights(tf.constant([0, 0, 1]), logits).numpy()
    largest = tf.nn.softmax(logits).numpy().max(1)
    np.testing.assert_allclose(weights, 3 * largest / largest.sum(), rtol=1e-6)
    comp = objectives.Reweighted(objectives.Natural(), "comp_prob").weights(tf.constant([0, 0, 1]), logits).numpy()
    of_true = 1 - tf.nn.softmax(logits).numpy()[[0, 1, 2], [0, 0, 1]]
    np.testing.assert_allclose(comp, 3 * of_true / of_true.sum(), rtol=1e-6)
    objective.active.assign(False)
    np.testing.assert_array_equal(objective.weights(tf.constant([0, 0, 1]), logits), 1)
    with pytest.raises(ValueError, match="`mode` must be one of prob"):
        objectives.Reweighted(objectives.Natural(), "all")


def test_weighted_loss_of_trades_is_the_weighted_mean():
    from tf_robust_sparse import attacks

    network, x, y = tiny_network("plain", batch_norm=False), tf.constant(X[:9]), tf.constant(Y[:9])
    inner = objectives.TRADES(attacks.LinfPGD(EPSILON, STEP, 1), beta=3.0)
    x_adv = tf.clip_by_value(x + 0.05, 0, 1)
    losses = inner.loss(network, x, y, x_adv)[0].numpy()
    found = objectives.Reweighted(inner, "nat_prob").loss(network, x, y, x_adv)[0].numpy()
    weights = tf.nn.softmax(network(x)).numpy()[np.arange(9), Y[:9]]
    assert found.mean() == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-5)


@pytest.mark.full
def test_two_replicas_share_the_sum_of_the_weights():
    def trained(scope):
        with scope:
            network = tiny_network("plain", batch_norm=False)
            objective = objectives.Reweighted(objectives.Natural(), "comp_prob")
            model = RobustModel(network, objective)
            model.compile(keras.optimizers.SGD(0.1))
        model.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
        return network.get_weights()

    for a, b in zip(trained(tf.name_scope("none")), trained(mirrored().scope()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
