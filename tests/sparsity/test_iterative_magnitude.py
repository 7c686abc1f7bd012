import logging

import numpy as np
import pytest

from tf_robust_sparse.saving.round_files import label_of
from tf_robust_sparse.sparsity.iterative_magnitude import iterative_magnitude, prune_smallest

SHAPES = {"hidden_1": (784, 300), "hidden_2": (300, 100), "output": (100, 10)}
FRACTIONS = {"hidden_1": 0.2, "hidden_2": 0.2, "output": 0.1}
# Per round: what remains of the three layers, in all, and the label.
PUBLISHED = [
    (235200, 30000, 1000, 266200, "100.0"),
    (188159, 23999, 899, 213057, "80.0"),
    (150526, 19198, 808, 170532, "64.1"),
    (120420, 15357, 726, 136503, "51.3"),
    (96335, 12285, 652, 109272, "41.0"),
    (77067, 9827, 586, 87480, "32.9"),
    (61653, 7861, 526, 70040, "26.3"),
    (49321, 6288, 472, 56081, "21.1"),
    (39456, 5029, 424, 44909, "16.9"),
    (31564, 4022, 381, 35967, "13.5"),
    (25250, 3217, 342, 28809, "10.8"),
    (20199, 2573, 307, 23079, "08.7"),
    (16158, 2057, 275, 18490, "06.9"),
    (12925, 1645, 246, 14816, "05.6"),
    (10339, 1315, 220, 11874, "04.5"),
    (8270, 1051, 197, 9518, "03.6"),
    (6615, 840, 176, 7631, "02.9"),
    (5291, 671, 157, 6119, "02.3"),
    (4232, 536, 140, 4908, "01.8"),
    (3385, 428, 125, 3938, "01.5"),
    (2707, 341, 112, 3160, "01.2"),
]


def pruned_rounds(cutoff, rounds):
    """Masks round after round, of magnitudes drawn anew each time."""
    random = np.random.default_rng(0)
    rule = iterative_magnitude(FRACTIONS, cutoff)
    masks = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    yield masks
    for _ in range(rounds):
        # In double precision no two magnitudes are equal.
        before, masks = masks, rule({name: random.normal(size=shape) for name, shape in SHAPES.items()}, masks)
        assert all((masks[name] <= before[name]).all() for name in masks)
        yield masks


def test_the_inclusive_cutoff_leaves_the_published_numbers():
    for row, masks in zip(PUBLISHED, pruned_rounds("inclusive", 20), strict=True):
        left = [int(mask.sum()) for mask in masks.values()]
        assert (*left, sum(left), label_of(sum(left), 266_200)) == row


def test_the_exact_cutoff_leaves_one_label_more():
    *_, masks = pruned_rounds("exact", 18)
    left = sum(int(mask.sum()) for mask in masks.values())
    assert (left, label_of(left, 266_200)) == (4928, "01.9")


@pytest.mark.parametrize(("cutoff", "removed"), [("inclusive", 3), ("exact", 1)])
def test_ties_at_the_cutoff_go_together_or_by_place(cutoff, removed, caplog):
    kernel = np.array([1, 1, 1, 2, 3, 4, 5, 6, 7, 8], float)
    with caplog.at_level(logging.WARNING):
        mask = prune_smallest(kernel, np.ones(10, bool), 0.1, cutoff)
    assert mask.tolist() == [False] * removed + [True] * (10 - removed)
    assert bool(caplog.records) == (cutoff == "inclusive")  # three are more than twice one


def test_a_kernel_of_zeros_is_removed_whole_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert not prune_smallest(np.zeros((4, 5)), np.ones((4, 5), bool), 0.2).any()
    assert "20 of 20 entries are at or below the cutoff 0, because of ties; 4 were to be removed" in caplog.text


@pytest.mark.parametrize(("entries", "removed"), [(5, 1), (15, 3)])
def test_halves_round_to_even(entries, removed):
    kernel = np.arange(1.0, entries + 1)
    assert (~prune_smallest(kernel, np.ones(entries, bool), 0.1)).sum() == removed


def test_only_what_the_mask_has_is_counted_and_sorted():
    kernel, mask = np.array([0.1, 9.0, 0.2, 8.0, 0.3, 7.0]), np.array([0, 1, 0, 1, 0, 1], bool)
    assert prune_smallest(kernel, mask, 0.3, "exact").tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("cutoff", ["inclusive", "exact"])
def test_all_or_nothing_to_prune(cutoff):
    kernel, mask = np.arange(6.0), np.ones(6, bool)
    assert not prune_smallest(kernel, mask, 1.0, cutoff).any()
    assert not prune_smallest(kernel, np.zeros(6, bool), 0.5, cutoff).any()
    assert prune_smallest(kernel, mask, 0.0, "exact").all()


@pytest.mark.parametrize(
    ("kernel", "mask", "fraction", "cutoff", "words"),
    [
        (np.ones(3), np.ones(4), 0.1, "exact", "shape"),
        (np.ones(3), np.ones(3), 1.1, "exact", "fraction"),
        (np.ones(3), np.ones(3), 0.1, "both", "inclusive, exact"),
        (np.array([1, np.nan]), np.ones(2), 0.1, "exact", "finite"),
    ],
)
def test_bad_arguments_are_named(kernel, mask, fraction, cutoff, words):
    with pytest.raises(ValueError, match=words):
        prune_smallest(kernel, mask, fraction, cutoff)


def test_the_rule_wants_a_fraction_for_each_layer():
    with pytest.raises(ValueError, match="hidden_1, hidden_2, output"):
        iterative_magnitude({"hidden_1": 0.2})({n: np.ones(s) for n, s in SHAPES.items()}, {})
