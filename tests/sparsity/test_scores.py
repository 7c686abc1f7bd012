"""Scores before they are learned, and how the connections are spread over the kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import sparsity
from tf_robust_sparse.layers import kernel_layers
from tf_robust_sparse.sparsity.scores import RANDOM_SCORES, random_scores, rescale_kernels, subnet_layers

X, Y = tiny_images(32)


@pytest.fixture
def network():
    keras.utils.set_random_seed(0)
    return tiny_network("subnet")


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def test_scaled_scores_rank_as_magnitudes_do(network):
    sparsity.scaled_scores(network)
    for layer in subnet_layers(network):
        kernel, scores = np.abs(array(layer.kernel)).ravel(), np.abs(array(layer.scores)).ravel()
        np.testing.assert_array_equal(np.argsort(kernel, kind="stable"), np.argsort(scores, kind="stable"))
        fan_in = np.prod(layer.kernel.shape[:-1])
        assert scores.max() == pytest.approx((6 / fan_in) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(("shape", "largest"), [((3, 3, 3), 0.471405), ((3, 3, 64), 0.102062), ((4096,), 0.0382733)])
def test_published_sizes_of_scaled_scores(shape, largest):
    make = {3: lambda: keras.Input((8, 8, shape[-1])), 1: lambda: keras.Input(shape)}
    from tf_robust_sparse.layers import SubnetConv2D, SubnetDense

    inputs = make[len(shape)]()
    layer = SubnetConv2D(4, 3) if len(shape) == 3 else SubnetDense(4)
    network = keras.Model(inputs, layer(inputs))
    sparsity.scaled_scores(network)
    assert np.abs(array(layer.scores)).max() == pytest.approx(largest, rel=1e-5)


def test_magnitude_pruning_is_scores_that_are_never_learnt(network):
    sparsity.scaled_scores(network)
    sparsity.set_keep_fractions(network, 0.1)
    for layer in subnet_layers(network):
        kernel = np.abs(array(layer.kernel))
        smallest_kept = np.sort(kernel.ravel())[-layer.kept]
        np.testing.assert_array_equal(layer.compute_kernel_mask(), kernel >= smallest_kept)


def test_a_kernel_of_zeros_has_no_order(network):
    layer = subnet_layers(network)[1]
    layer.kernel.assign(np.zeros(layer.kernel.shape))
    with pytest.raises(ValueError, match=r"The kernel of conv2 is zero everywhere"):
        sparsity.scaled_scores(network)


@pytest.mark.parametrize("name", RANDOM_SCORES)
def test_random_scores_have_the_variance_of_their_name(name):
    from tf_robust_sparse.layers import SubnetDense

    inputs = keras.Input((400,))
    layer = SubnetDense(600)
    network = keras.Model(inputs, layer(inputs))
    random_scores(network, name, seed=3)
    variance = {"default": 1 / 1200, "kaiming": 2 / 400, "xavier": 4 / 1000}[name.partition("_")[0]]
    scores = array(layer.scores)
    assert scores.std() == pytest.approx(variance**0.5, rel=0.01)
    bounded = np.abs(scores).max() <= (3 * variance) ** 0.5 * 1.0001
    assert bounded == (not name.endswith("normal"))
    random_scores(network, name, seed=3)
    np.testing.assert_array_equal(array(layer.scores), scores)
    random_scores(network, name, seed=4)
    assert (array(layer.scores) != scores).any()


def test_layers_draw_different_scores(network):
    random_scores(network, seed=0)
    first = [array(layer.scores).ravel()[:20] for layer in subnet_layers(network)]
    assert not np.allclose(first[0] / np.abs(first[0]).max(), first[1] / np.abs(first[1]).max())


def test_snip_is_the_size_of_weight_times_gradient(network):
    moving = [array(variable).copy() for variable in network.non_trainable_variables]
    sparsity.set_keep_fractions(network, 0.2)
    found = subnet_layers(network)
    sparsity.snip_scores(network, [(X, Y)])
    scores = [array(layer.scores).copy() for layer in found]
    assert [layer.keep_fraction for layer in found] == [0.2] * 3
    for before, after in zip(moving, network.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, array(after))
    sparsity.set_keep_fractions(network, 1.0)
    with tf.GradientTape() as tape:
        logits = network(X, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(Y, logits))
    gradients = tape.gradient(loss, [layer.kernel.value for layer in found])
    for layer, gradient, score in zip(found, gradients, scores, strict=True):
        np.testing.assert_allclose(score, np.abs(array(layer.kernel) * gradient), rtol=2e-3, atol=1e-6)


def test_snip_averages_batches_and_needs_one(network):
    sparsity.snip_scores(network, [(X, Y)] * 3)
    thrice = array(subnet_layers(network)[0].scores).copy()
    sparsity.snip_scores(network, [(X, Y)])
    np.testing.assert_allclose(array(subnet_layers(network)[0].scores), thrice, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="at least one batch"):
        sparsity.snip_scores(network, [])


def test_rescaling_keeps_the_variance(network):
    sparsity.set_keep_fractions(network, 0.25)
    before = array(subnet_layers(network)[0].kernel).copy()
    rescale_kernels(network)
    np.testing.assert_allclose(array(subnet_layers(network)[0].kernel), 2 * before, rtol=1e-6)


def test_scores_need_subnet_kernels():
    for kernel in ("plain", "masked", "rewiring"):
        with pytest.raises(ValueError, match=r'kernel="subnet"'):
            sparsity.scaled_scores(tiny_network(kernel))
    with pytest.raises(ValueError, match="`distribution` must be one of default"):
        random_scores(tiny_network("subnet"), "uniform")


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
@pytest.mark.parametrize("connectivity", [0.05, 0.3, 1.0])
def test_fractions_add_up_to_the_connectivity(network, allocation, connectivity):
    sparsity.scaled_scores(network)
    fractions = sparsity.keep_fractions(network, connectivity, allocation)
    sparsity.set_keep_fractions(network, fractions)
    kept = sum(layer.kept for layer in subnet_layers(network))
    entries = sum(int(np.prod(layer.kernel.shape)) for layer in subnet_layers(network))
    assert abs(kept - connectivity * entries) <= 4
    assert all(0 < fraction <= 1 for fraction in fractions.values())
    assert list(fractions) == [layer.name for layer in kernel_layers(network)]


def test_erk_keeps_small_kernels_denser(network):
    fractions = sparsity.keep_fractions(network, 0.05, "erk")
    sizes = {layer.name: int(np.prod(layer.kernel.shape)) for layer in subnet_layers(network)}
    assert fractions["conv1"] == max(fractions.values()) and sizes["conv1"] == min(sizes.values())
    # In proportion to the sum of the sides over the product, where no kernel is full.
    shapes = {layer.name: layer.kernel.shape for layer in subnet_layers(network)}
    ratio = {
        name: fractions[name] / (sum(shape) / sizes[name]) for name, shape in shapes.items() if fractions[name] < 1
    }
    assert len(ratio) >= 2 and max(ratio.values()) == pytest.approx(min(ratio.values()))


def test_global_fractions_are_those_of_one_threshold(network):
    random_scores(network, "kaiming_normal")
    everything = np.concatenate([np.abs(array(layer.scores)).ravel() for layer in subnet_layers(network)])
    threshold = np.sort(everything)[-int(0.1 * everything.size)]
    for layer, fraction in zip(
        subnet_layers(network), sparsity.keep_fractions(network, 0.1, "global").values(), strict=True
    ):
        assert fraction == pytest.approx(max((np.abs(array(layer.scores)) >= threshold).mean(), 1e-9), abs=2e-3)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([0.1, 0.2], r"one fraction for each of the 3 subnet layers conv1, conv2, classifier. Received: 2"),
        ({"conv1": 0.1}, r"must name each subnet layer: conv1, conv2, classifier. Received: conv1"),
        (0.0, r"in \(0, 1\]"),
        ([0.1, 0.2, 2.0], r"in \(0, 1\]"),
    ],
)
def test_bad_fractions_are_named(network, fractions, message):
    with pytest.raises(ValueError, match=message):
        sparsity.set_keep_fractions(network, fractions)


def test_unknown_allocation(network):
    with pytest.raises(ValueError, match="`allocation` must be one of uniform, erk, igq, adaptive, global"):
        sparsity.keep_fractions(network, 0.1, "er")
