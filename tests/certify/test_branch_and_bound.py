"""Branch and bound decides as a complete oracle does, within its limits, with true counterexamples."""

import keras
import numpy as np
import pytest
from scipy import optimize

from tf_robust_sparse import certify, layers
from tf_robust_sparse.certify import branching
from tf_robust_sparse.certify.branching import Search
from tf_robust_sparse.certify.splits import SplitBounds


def chain(form, seed):
    """Returns a network with three ReLUs of 8 neurons, dense or a convolution first, and its linear parts."""
    keras.utils.set_random_seed(seed)
    dense, conv = layers.KERNELS["masked"]
    first = [conv(2, 2), layers.BatchNormalization()] if form == "conv" else [keras.layers.Flatten(), dense(8)]
    parts = [first, [keras.layers.Flatten(), dense(8)], [dense(8)], [dense(3)]]
    x = inputs = keras.Input((3, 3, 1))
    for number, part in enumerate(parts):
        for layer in part:
            x = layer(x)
        x = keras.layers.ReLU()(x) if number < 3 else x
    network, random = keras.Model(inputs, x), np.random.default_rng(seed)
    for layer in layers.kernel_layers(network):
        layer.kernel.assign(2 * layer.kernel)
        layer.bias.assign(0.3 * random.standard_normal(layer.bias.shape))
        layer.kernel_mask.assign(random.random(layer.kernel.shape) < 0.8)
    return network, parts


def matrices(parts):
    """Returns the matrix and the bias of each part, by probes."""
    shape, found = (3, 3, 1), []
    for part in parts:
        size = int(np.prod(shape))
        x = np.concatenate([np.zeros((1, size)), np.eye(size)]).astype("float32").reshape(-1, *shape)
        for layer in part:
            x = layer(x)
        x, shape = np.asarray(x, np.float64), x.shape[1:]
        x = x.reshape(len(x), -1)
        found.append(((x[1:] - x[0]).T, x[0]))
    return found


def smallest_margin(maps, image, label, epsilon):
    """Returns the smallest margin in the ball, by a mixed-integer program over pixels, neurons and what is on."""
    lower, upper = (np.clip(image.ravel() + side * epsilon, 0, 1) for side in (-1, 1))
    hidden = sum(len(bias) for _, bias in maps[:-1])
    pixels, outputs, on = lower.size, lower.size, lower.size + hidden
    low, high = np.zeros(pixels + 2 * hidden), np.ones(pixels + 2 * hidden)
    low[:pixels], high[:pixels] = lower, upper
    rows, limits, sources = [], [], slice(0, pixels)
    for matrix, bias in maps[:-1]:
        center, radius = matrix @ (lower + upper) / 2 + bias, np.abs(matrix) @ (upper - lower) / 2
        lower, upper = center - radius - 1e-9, center + radius + 1e-9
        for n in range(len(bias)):
            high[outputs + n] = max(upper[n], 0)
            above, below, cap = np.zeros((3, len(low)))
            above[sources], above[outputs + n] = matrix[n], -1  # input <= output
            below[sources], below[outputs + n], below[on + n] = -matrix[n], 1, -lower[n]  # equal, if on
            cap[outputs + n], cap[on + n] = 1, -max(upper[n], 0)  # 0, if off
            rows += [above, below, cap]
            limits += [-bias[n], bias[n] - lower[n], 0]
        sources = slice(outputs, outputs + len(bias))
        outputs, on = outputs + len(bias), on + len(bias)
        lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
    whole = np.arange(len(low)) >= pixels + hidden
    matrix, bias = maps[-1]
    found = []
    for other in set(range(len(bias))) - {label}:
        aim = np.zeros(len(low))
        aim[sources] = matrix[label] - matrix[other]
        among = optimize.LinearConstraint(np.array(rows), ub=limits)
        done = optimize.milp(aim, constraints=among, bounds=optimize.Bounds(low, high), integrality=whole)
        found.append(done.fun + bias[label] - bias[other])
    return min(found)


def critical_radius(maps, image, label):
    """Returns the radius where the smallest margin is 0."""
    return optimize.brentq(lambda radius: smallest_margin(maps, image, label, radius), 0, 0.9, xtol=1e-5)


@pytest.fixture(scope="module")
def hard():
    """A network, its maps and bounds, and images with labels and the radii where the answers change."""
    network, parts = chain("conv", 8)
    images = np.random.default_rng(0).random((3, 3, 3, 1)).astype("float32")
    labels, maps = np.argmax(network(images), 1), matrices(parts)
    radii = [critical_radius(maps, image, label) for image, label in zip(images, labels, strict=True)]
    return network, maps, SplitBounds(network), list(zip(images, labels, radii, strict=True))


def decide_as_the_programs(network, maps, bounds, image, label, radius, iterations):
    """Decides below and above the radius; returns the numbers of parts."""
    below, above = (Search(bounds, image, label, f * radius).run(10_000, 60, iterations, 64) for f in (0.97, 1.03))
    assert (below.status, above.status) == ("verified", "falsified")
    for row, factor in ((below, 0.97), (above, 1.03)):
        assert row.margin <= smallest_margin(maps, image, label, factor * radius) + 1e-5
    found = above.counterexample
    assert np.abs(found - image).max() <= 1.03 * radius + 1e-7 and found.min() >= 0 <= 1 - found.max()
    assert np.argmax(network(found[np.newaxis])) != label
    return below.nodes, above.nodes


def test_agrees_with_mixed_integer_programs_near_the_radius_where_the_answer_changes(hard):
    *of_network, cases = hard
    parts = [decide_as_the_programs(*of_network, *case, 5) for case in cases]
    assert max(parts[2]) > 100 and parts[0][0] > 0
    # Without gradients, parts are cut until linear programs decide them.
    assert decide_as_the_programs(*of_network, *cases[0], 0)[0] > parts[0][0]


@pytest.mark.full
@pytest.mark.parametrize(("form", "seed"), [("dense", 1), ("dense", 2), ("conv", 0), ("conv", 2), ("conv", 5)])
def test_agrees_with_mixed_integer_programs_on_more_networks(form, seed):
    network, parts = chain(form, seed)
    maps, bounds = matrices(parts), SplitBounds(network)
    for image in np.random.default_rng(0).random((3, 3, 3, 1)).astype("float32"):
        label = int(np.argmax(network(image[np.newaxis])))
        radius = critical_radius(maps, image, label)
        decide_as_the_programs(network, maps, bounds, image, label, radius, 5)


def test_the_bound_grows_with_the_parts_and_limits_hold(hard):
    _, _, bounds, cases = hard
    image, label, radius = cases[2]
    rows = [Search(bounds, image, label, 0.97 * radius).run(parts, 60, 5, 8) for parts in (0, 2, 8, 31)]
    assert [row.nodes for row in rows] == [0, 2, 8, 30] and {row.status for row in rows} == {"unknown"}
    margins = [row.margin for row in rows]
    assert margins == sorted(margins) and margins[0] < margins[-1]
    assert Search(bounds, image, label, 0.97 * radius).run(10_000, 1e-9, 5, 64).nodes == 0


def test_a_table_goes_on_and_bad_settings_begin_none(hard, tmp_path, monkeypatch):
    network, _, bounds, cases = hard
    x, y = np.stack([case[0] for case in cases]), np.array([case[1] for case in cases])
    y[1] = (y[1] + 1) % 3
    path = tmp_path / "decided.tsv"
    for more, expected in (({"max_nodes": -1}, "`max_nodes` is at least 0"), ({"seconds": 0}, "`seconds` is above 0")):
        with pytest.raises(ValueError, match=expected):
            certify.branch_and_bound(network, x, y, 0.01, path, **more)
    pooled = keras.Sequential([keras.Input((3, 3, 1)), layers.MaxPooling2D(), keras.layers.Flatten()])
    pooled.add(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="is a max-pooling"):
        certify.branch_and_bound(pooled, x, y, 0.01, path)
    assert not path.exists()
    monkeypatch.setattr(branching, "SplitBounds", lambda *_: bounds)  # which are compiled already
    first = certify.branch_and_bound(network, x, y, 0.01, path, max_examples=2)
    assert [row.status for row in first] == ["verified", "falsified"] and first[1].margin == -np.inf
    np.testing.assert_array_equal(first[1].counterexample, x[1])  # it is misclassified as it is
    seen = []
    again = certify.branch_and_bound(network, x, y, 0.01, path, progress=seen.append)
    assert [row[:6] for row in again[:2]] == [row[:6] for row in first] and len(seen) == 1 and again[2].verified
    with pytest.raises(ValueError, match="of other settings"):
        certify.branch_and_bound(network, x, y, 0.01, path, max_nodes=7)
