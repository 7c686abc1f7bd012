import itertools

import numpy as np
import pytest

from tf_robust_sparse.data import stacked_train_dataset

X = np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1)
Y = np.arange(23)


def batches(seeds, count, first_step=0):
    dataset = stacked_train_dataset(X, Y, 5, seeds, first_step)
    return [y for _, y in itertools.islice(dataset.as_numpy_iterator(), count)]


def test_each_part_is_what_its_seed_gives_alone():
    both, one, other = batches([1, 2], 12), batches([1], 12), batches([2], 12)
    for together, *parts in zip(both, one, other, strict=True):
        np.testing.assert_array_equal(together, np.concatenate(parts))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_an_epoch_shows_every_image_once_with_a_partial_batch_at_its_end():
    found = batches([3], 10)
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 3] * 2
    first, second = np.concatenate(found[:5]), np.concatenate(found[5:])
    assert sorted(first) == sorted(second) == list(Y)
    assert (first != second).any()


@pytest.mark.parametrize("first_step", [1, 4, 5, 7])
def test_batches_from_a_step_on_are_those_of_the_whole(first_step):
    for a, b in zip(batches([1, 2], 12)[first_step:], batches([1, 2], 12 - first_step, first_step), strict=True):
        np.testing.assert_array_equal(a, b)


def test_images_are_scaled_and_stay_with_their_labels():
    x, y = next(stacked_train_dataset(X, Y, 5, [1, 2]).as_numpy_iterator())
    assert x.shape == (10, 1, 1, 1) and x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_allclose(x.reshape(-1) * 255, y, atol=1e-4)


def test_bad_numbers_are_refused():
    for seeds, batch_size, first_step in (([], 5, 0), ([1], 0, 0), ([1], 5, -1)):
        with pytest.raises(ValueError, match="there must be a seed"):
            stacked_train_dataset(X, Y, batch_size, seeds, first_step)
