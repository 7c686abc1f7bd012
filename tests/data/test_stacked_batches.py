import itertools

import numpy as np
import pytest

from tf_robust_sparse.data.stacked_batches import stacked_batches


def batches(seeds, count, first_step=0, examples=23):
    dataset = stacked_batches(examples, 5, seeds, first_step)
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def test_each_part_is_what_its_seed_gives_alone():
    both, one, other = batches([1, 2], 12), batches([1], 12), batches([2], 12)
    for together, *parts in zip(both, one, other, strict=True):
        np.testing.assert_array_equal(together, np.concatenate(parts))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("examples", "sizes"), [(23, [5, 5, 5, 5, 3]), (20, [5, 5, 5, 5]), (3, [3])])
def test_an_epoch_shows_every_example_once_with_a_partial_batch_at_its_end(examples, sizes):
    found = batches([3], 2 * len(sizes), examples=examples)
    assert [len(batch) for batch in found] == sizes * 2
    first, second = np.concatenate(found[: len(sizes)]), np.concatenate(found[len(sizes) :])
    assert sorted(first) == sorted(second) == list(range(examples))
    assert examples < 5 or (first != second).any()


@pytest.mark.parametrize("first_step", [1, 4, 5, 7])
def test_batches_from_a_step_on_are_those_of_the_whole(first_step):
    for a, b in zip(batches([1, 2], 12)[first_step:], batches([1, 2], 12 - first_step, first_step), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("examples", "batch_size", "seeds", "first_step"),
    [(0, 5, [1], 0), (23, 5, [], 0), (23, 0, [1], 0), (23, 5, [1], -1)],
)
def test_bad_numbers_are_refused(examples, batch_size, seeds, first_step):
    with pytest.raises(ValueError, match="there must be a seed"):
        stacked_batches(examples, batch_size, seeds, first_step)


def test_nothing_is_tuned():
    # A thread that tunes would be waited for whenever an endless iterator is left.
    assert stacked_batches(10, 3, [0]).options().autotune.enabled is False
