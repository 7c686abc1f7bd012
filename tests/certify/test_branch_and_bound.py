"""Branch and bound decides as a complete oracle does, within its limits, with true counterexamples."""

import keras
import numpy as np
import pytest
from scipy import optimize

from tf_robust_sparse import layers
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
    """Returns the radius where the smallest margin is 0, by bisection."""
    least, most = 0.0, 0.9
    for _ in range(12):
        middle = (least + most) / 2
        least, most = (middle, most) if smallest_margin(maps, image, label, middle) > 0 else (least, middle)
    return least


@pytest.mark.parametrize("form", ["dense", "conv"])
def test_agrees_with_mixed_integer_programs_near_the_radius_where_the_answer_changes(form):
    network, parts = chain(form, 1)
    maps, bounds = matrices(parts), SplitBounds(network)
    images = np.random.default_rng(0).random((6, 3, 3, 1)).astype("float32")
    labels = np.argmax(network(images), 1)
    used = []
    for image, label in zip(images, labels, strict=True):
        radius = critical_radius(maps, image, label)
        for factor, iterations in ((0.97, 10), (1.03, 10), (0.97, 0)):
            row = Search(bounds, image, label, factor * radius).run(100_000, 60, iterations, 64)
            exact = smallest_margin(maps, image, label, factor * radius)
            print(row[:7], exact, radius)
            assert row.status == ("verified" if factor < 1 else "falsified")
            assert row.margin <= exact + 1e-5
            used.append(row.nodes)
            if factor > 1:
                found = row.counterexample
                assert np.abs(found - image).max() <= factor * radius + 1e-7 and found.min() >= 0 <= 1 - found.max()
                assert np.argmax(network(found[np.newaxis])) != label
    assert max(used) > 20  # not all of them at the root


def test_limits_and_the_bound_that_grows_with_the_nodes(tmp_path):
    network, parts = chain("dense", 2)
    image = np.random.default_rng(1).random((1, 3, 3, 1)).astype("float32")
    label = np.argmax(network(image), 1)
    radius = 0.99 * critical_radius(matrices(parts), image[0], label[0])
    bounds, rows = SplitBounds(network), []
    for nodes in (2, 4, 8, 16, 32, 10_000):
        rows.append(Search(bounds, image[0], label[0], radius).run(nodes, 60, 0, 8))
        print(rows[-1])
        assert rows[-1].nodes <= nodes and rows[-1].status != "falsified"
    margins = [row.margin for row in rows]
    assert margins == sorted(margins) and margins[0] < margins[1] < margins[-2] < margins[-1]
