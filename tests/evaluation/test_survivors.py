import numpy as np

from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.survivors import attack_survivors, padded_batches


def test_padded_batches():
    batches = [(rows.tolist(), count) for rows, count in padded_batches(np.array([3, 5, 8, 9, 11]), 2)]
    assert batches == [([3, 5], 2), ([8, 9], 2), ([11, 11], 1)]
    assert list(padded_batches(np.array([], int), 2)) == []


def test_worked_example():
    # Image i falls in restart falls[i]; -1 never. Image 0 is misclassified from the start.
    falls = np.array([0, 0, 1, -1, 2, 1, -1])
    attacked = []

    def survives(rows, restart):
        attacked.append((restart, rows.tolist()))
        return falls[rows] != restart

    standing = np.array([False] + [True] * 6)
    with Progress("test", 21, shown=False) as bar:
        final, history = attack_survivors(standing, 3, 4, survives, bar)
    np.testing.assert_array_equal(final, falls == -1)
    np.testing.assert_allclose(history, [5 / 7, 3 / 7, 2 / 7])
    assert attacked == [
        (0, [1, 2, 3, 4]),
        (0, [5, 6, 5, 5]),
        (1, [2, 3, 4, 5]),
        (1, [6, 6, 6, 6]),
        (2, [3, 4, 6, 3]),
    ]
    assert standing.sum() == 6
