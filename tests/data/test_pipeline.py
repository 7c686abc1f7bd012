import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.data import makers
from tests.data.test_augment import WEIGHT_ROUNDING, shifted_by_scipy
from tf_robust_sparse import data
from tf_robust_sparse.data import augment, pipeline
from tf_robust_sparse.data.datasets import from_npz
from tf_robust_sparse.data.pipeline import auxiliary_batch_size

N, BATCH = 50, 8
IMAGES, LABELS = makers.images(N, (6, 6, 3)), np.arange(N)  # the label tells which image it is
AUXILIARY = makers.images(23, (6, 6, 3), seed=1), 100 + np.arange(23)


def batches(**arguments):
    return arrays(data.train_dataset(IMAGES, LABELS, BATCH, **arguments))


def arrays(dataset):
    return [(x, y) for x, y in dataset.as_numpy_iterator()]


def assert_equal(some, others):
    assert len(some) == len(others)
    for (x, y), (other_x, other_y) in zip(some, others, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


def joined_labels(some):
    return np.concatenate([y for _, y in some])


def test_elements():
    dataset = data.train_dataset(IMAGES, LABELS, BATCH, epochs=2)
    assert dataset.element_spec == (tf.TensorSpec([8, 6, 6, 3], tf.float32), tf.TensorSpec([8], tf.int64))
    assert dataset.cardinality().numpy() == 12 == 2 * data.steps_per_epoch(N, BATCH)
    for x, _ in dataset:
        assert x.numpy().min() >= 0 and x.numpy().max() <= 1


@pytest.mark.parametrize("images", [IMAGES, (IMAGES / 255).astype(np.float32)], ids=["uint8", "float32"])
def test_without_augmentation_an_epoch_holds_each_image_once(images):
    dataset = data.train_dataset(images, LABELS, BATCH, epochs=1, augmentation=None, drop_remainder=False)
    x, y = (np.concatenate(part) for part in zip(*arrays(dataset), strict=True))
    assert sorted(y) == list(range(N)) and list(y) != sorted(y)
    np.testing.assert_array_equal(x, IMAGES[y] / np.float32(255))


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_is_the_function_of_augment(flip):
    epoch = batches(epochs=1, flip=flip, seed=4)
    x, y = (np.concatenate(part) for part in zip(*epoch, strict=True))
    uniform = augment.uniforms(len(y), pipeline._key(4, 0, pipeline._AUGMENT)).numpy()
    np.testing.assert_allclose(x, shifted_by_scipy(IMAGES[y] / np.float32(255), uniform, flip), atol=WEIGHT_ROUNDING)
    cropped = batches(epochs=1, flip=flip, seed=4, augmentation="crop")
    np.testing.assert_array_equal(joined_labels(cropped), y)
    expected = augment.crop_and_flip(IMAGES[y] / np.float32(255), uniform, flip=flip)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in cropped]), expected)


@pytest.mark.parametrize(
    "extra", [pytest.param({}, marks=pytest.mark.full), {"auxiliary": AUXILIARY}, {"augmentation": "crop"}]
)
def test_same_seed_same_stream_other_seed_another(extra):
    first = batches(epochs=2, seed=5, **extra)
    keras.utils.set_random_seed(77)
    assert_equal(first, batches(epochs=2, seed=5, **extra))
    assert not np.array_equal(joined_labels(first), joined_labels(batches(epochs=2, seed=6, **extra)))


FIRST_LABELS = [3, 22, 11, 40, 49, 43, 16, 44]
FIRST_PIXEL = [0.45819801, 0.63483876, 0.23542906]


def test_no_drift():
    """Recorded from the first version: a change would break the resumption of older runs."""
    first = batches(epochs=1, seed=0)[0]
    assert first[1].tolist() == FIRST_LABELS
    np.testing.assert_allclose(first[0][0, 0, 0], FIRST_PIXEL, atol=WEIGHT_ROUNDING)


@pytest.mark.parametrize(
    ("first_epoch", "extra"), [(1, {}), (3, {"auxiliary": AUXILIARY}), (1, {"augmentation": None})]
)
def test_a_resumed_run_sees_what_the_uninterrupted_run_saw(first_epoch, extra):
    whole = batches(epochs=4, **extra)
    steps = len(whole) // 4
    assert_equal(whole[first_epoch * steps :], batches(epochs=4, first_epoch=first_epoch, **extra))


def test_epochs_differ():
    whole = batches(epochs=2)
    assert joined_labels(whole[:6]).tolist() != joined_labels(whole[6:]).tolist()
    assert batches(epochs=3, first_epoch=3) == []


def test_without_epochs_each_pass_is_another_epoch():
    dataset = data.train_dataset(IMAGES, LABELS, BATCH)
    assert dataset.cardinality().numpy() == 6
    passes = [arrays(dataset) for _ in range(3)]
    for some, others in itertools.combinations(passes, 2):
        assert joined_labels(some).tolist() != joined_labels(others).tolist()
    for one in passes:
        assert len(one) == 6 and len(set(joined_labels(one))) == 48
    again = data.train_dataset(IMAGES, LABELS, BATCH)
    for one in passes:
        assert_equal(one, arrays(again))


def test_without_epochs_the_last_batch_may_be_smaller():
    dataset = data.train_dataset(IMAGES, LABELS, BATCH, drop_remainder=False)
    assert dataset.cardinality().numpy() == 7
    assert [len(y) for _, y in dataset] == [8] * 6 + [2]


def test_with_epochs_each_ends_with_its_smaller_batch():
    arguments = {"epochs": 3, "with_index": True, "drop_remainder": False}
    dataset = data.train_dataset(IMAGES, LABELS, BATCH, **arguments)
    assert dataset.cardinality().numpy() == 3 * data.steps_per_epoch(50, BATCH, drop_remainder=False) == 21
    batches = list(dataset.as_numpy_iterator())
    assert [len(y) for _, y, _ in batches] == 3 * ([8] * 6 + [2])
    for epoch in range(3):
        index = np.concatenate([index for _, _, index in batches[7 * epoch : 7 * epoch + 7]])
        assert sorted(index) == list(range(50))
    resumed = data.train_dataset(IMAGES, LABELS, BATCH, first_epoch=2, **arguments)
    for (x, y, index), *others in zip(resumed.as_numpy_iterator(), batches[14:], strict=True):
        for one, other in zip((x, y, index), others[0], strict=True):
            np.testing.assert_array_equal(one, other)


class Recorder(keras.Model):
    """Keeps the labels of every training step."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.seen = []

    def call(self, x):
        return self.dense(x[:, 0, 0])

    def train_step(self, batch):
        self.seen.append(batch[1].numpy())
        return {"loss": tf.zeros([])}


@pytest.mark.parametrize(("first_epoch", "built"), [(0, True), (1, False)])
def test_fit_sees_every_batch_in_order(first_epoch, built):
    model = Recorder()
    if built:
        model(IMAGES[:1] / np.float32(255))
    model.compile(optimizer="sgd", loss="mse", run_eagerly=True)
    train = data.train_dataset(IMAGES, LABELS, BATCH, epochs=3, first_epoch=first_epoch)
    model.fit(train, epochs=3, initial_epoch=first_epoch, steps_per_epoch=6, shuffle=False, verbose=0)
    expected = joined_labels(batches(epochs=3)[6 * first_epoch :])
    np.testing.assert_array_equal(np.concatenate(model.seen), expected)


DATASETS = {
    "auxiliary": lambda: data.train_dataset(IMAGES, LABELS, BATCH, epochs=2, auxiliary=AUXILIARY),
    "passes": lambda: data.train_dataset(IMAGES, LABELS, BATCH),
    "test": lambda: data.test_dataset(IMAGES[:48], LABELS[:48], BATCH),
}


@pytest.mark.parametrize("name", DATASETS)
def test_two_replicas_share_the_global_batch(name):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    alone = arrays(DATASETS[name]())
    together = []
    for x, y in strategy.experimental_distribute_dataset(DATASETS[name]()):
        xs, ys = strategy.experimental_local_results(x), strategy.experimental_local_results(y)
        assert [len(part) for part in ys] == [4, 4]
        together.append((np.concatenate(xs), np.concatenate(ys)))
    assert_equal(alone, together)


@pytest.mark.parametrize("name", DATASETS)
def test_two_workers_share_the_global_batch(name):
    """As AutoShardPolicy.DATA does: every global batch in two, and every second part for each worker."""
    alone = arrays(DATASETS[name]())
    workers = [arrays(DATASETS[name]().rebatch(BATCH // 2).shard(2, index)) for index in range(2)]
    together = [
        (np.concatenate([x, other_x]), np.concatenate([y, other_y]))
        for (x, y), (other_x, other_y) in zip(*workers, strict=True)
    ]
    assert_equal(alone, together)
    policy = DATASETS[name]().options().experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA


@pytest.mark.parametrize("fraction, size", [(0.5, 4), (0.25, 2), (0.9, 7)])
def test_auxiliary_examples_fill_their_share_of_every_batch(fraction, size):
    epochs = batches(epochs=2, auxiliary=AUXILIARY, auxiliary_fraction=fraction, augmentation=None)
    steps = int(N / (BATCH - size))
    assert len(epochs) == 2 * steps == 2 * data.steps_per_epoch(N, BATCH, size)
    everything = {**dict(enumerate(IMAGES)), **dict(enumerate(AUXILIARY[0], 100))}
    for x, y in epochs:
        assert (y >= 100).sum() == size
        np.testing.assert_array_equal(x, np.stack([everything[label] for label in y]) / np.float32(255))
    labeled = joined_labels(epochs[:steps])
    labeled = labeled[labeled < 100]
    assert len(set(labeled)) == len(labeled) == steps * (BATCH - size)


def test_auxiliary_examples_go_on_in_full_passes():
    extra = joined_labels(batches(epochs=4, auxiliary=AUXILIARY))
    extra = extra[extra >= 100]
    assert len(extra) == 4 * 12 * 4
    passes = [extra[start : start + 23] for start in range(0, 8 * 23, 23)]
    for one in passes:
        assert sorted(one) == list(range(100, 123))
    assert len({tuple(one) for one in passes}) == 8


def test_replicas_get_equal_shares_of_auxiliary_examples():
    for _, y in batches(epochs=1, auxiliary=AUXILIARY):
        assert (y[:4] >= 100).sum() == (y[4:] >= 100).sum() == 2


def test_few_auxiliary_examples_suffice():
    few = AUXILIARY[0][:1], AUXILIARY[1][:1]
    assert all((y == 100).sum() == 4 for _, y in batches(epochs=1, auxiliary=few))


def test_auxiliary_floats_beside_uint8():
    floats = (AUXILIARY[0] / 255).astype(np.float32), AUXILIARY[1]
    assert_equal(batches(epochs=1, auxiliary=AUXILIARY), batches(epochs=1, auxiliary=floats))


def test_steps_of_the_published_settings():
    assert data.steps_per_epoch(50_000, 128) == 390
    assert auxiliary_batch_size(128, 0.5) == 64
    assert data.steps_per_epoch(50_000, 128, 64) == 781
    assert data.steps_per_epoch(73_257, 128) == 572
    assert data.steps_per_epoch(50_000, 128, drop_remainder=False) == 391


def test_test_dataset_keeps_order_and_the_last_batch():
    parts = arrays(data.test_dataset(IMAGES, LABELS, BATCH))
    assert [len(y) for _, y in parts] == [8] * 6 + [2]
    np.testing.assert_array_equal(joined_labels(parts), LABELS)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), IMAGES / np.float32(255))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"augmentation": "rotate"}, "'shift', 'crop', 'resized_crop'. Received: augmentation='rotate'"),
        ({"batch_size": 0}, "positive integer"),
        ({"batch_size": 8.0}, "positive integer"),
        ({"batch_size": 51}, "at least one full batch.*50 examples, batch_size=51"),
        ({"epochs": 2, "first_epoch": 3}, "`first_epoch` must be in"),
        ({"first_epoch": 1}, "pass `epochs`, too"),
        ({"auxiliary": AUXILIARY, "auxiliary_fraction": 1.0}, r"in \(0, 1\)"),
        ({"auxiliary": AUXILIARY, "auxiliary_fraction": 0.01}, "at least one"),
        ({"auxiliary": AUXILIARY, "drop_remainder": False}, "pass drop_remainder=True"),
        ({"auxiliary": (AUXILIARY[0][:, :5], AUXILIARY[1])}, "resize them"),
        ({"auxiliary": (AUXILIARY[0], AUXILIARY[1][:4])}, "auxiliary examples: labels must be as many"),
        ({"images": IMAGES / 1.0}, "divide by 255"),
        ({"images": IMAGES[..., 0]}, "a channel axis to gray ones"),
        ({"labels": LABELS - 1}, "from -1"),
    ],
)
def test_refuses_with_one_line(arguments, message):
    arguments = {"images": IMAGES, "labels": LABELS, "batch_size": BATCH, **arguments}
    with pytest.raises(ValueError, match=message) as error:
        data.train_dataset(**arguments)
    assert "\n" not in str(error.value)


def test_pair_functions(tmp_path):
    train, test = data.fashion_mnist_sample(batch_size=100)
    assert train.cardinality().numpy() == 80 and test.cardinality().numpy() == 20
    x, y = next(iter(train))
    assert x.shape == (100, 28, 28, 1) and y.dtype == tf.int64
    makers.write_idx(tmp_path)
    train, test = data.mnist(3, tmp_path, seed=1)
    assert train.cardinality().numpy() == 2 and next(iter(test))[0].shape == (3, 28, 28, 1)
    path = tmp_path / "a.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    train, test = from_npz(path, 10)
    assert sorted(np.concatenate([y for _, y in train])) == list(range(N)) and test.cardinality().numpy() == 5


def test_fit_on_the_sample_for_a_few_steps():
    train, test = data.fashion_mnist_sample(batch_size=200)
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(train, validation_data=test, epochs=2, shuffle=False, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]
