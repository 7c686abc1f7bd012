import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_network
from tf_robust_sparse import layers, models
from tf_robust_sparse.models.stacked import can_be_stacked, members_of
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.sparsity import masked_kernels

ROUNDING = 1e-5  # a batched product may add up in another order


def small(seed):
    """An unbiased dense network for images of 6x6 pixels, half of it masked."""
    network = unbiased_dense_300_100(4, (6, 6, 1), seed=seed)
    random = np.random.default_rng(seed)
    masks = {name: random.random(kernel.shape) < 0.5 for name, kernel in masked_kernels.get_kernels(network).items()}
    masked_kernels.set_masks(network, masks)
    return network


def test_the_published_network_has_the_published_parameters():
    network = unbiased_dense_300_100(seed=0)
    found = layers.kernel_layers(network)
    assert [type(layer) for layer in found] == [layers.MaskedDense] * 3
    assert [tuple(layer.kernel.shape) for layer in found] == [(784, 300), (300, 100), (100, 10)]
    assert [layer.name for layer in found] == ["hidden_1", "hidden_2", "output"]
    count = {
        kind: sum(int(np.prod(v.shape)) for v in getattr(network, f"{kind}_variables"))
        for kind in ("trainable", "non_trainable")
    }
    assert count == {"trainable": 266_200, "non_trainable": 266_200}
    assert all(layer.bias is None for layer in found)


def test_its_kernels_are_glorot_of_the_whole_layer_and_its_head_gives_logits():
    network = unbiased_dense_300_100(seed=3)
    for layer in layers.kernel_layers(network):
        limit = np.sqrt(6 / sum(layer.kernel.shape))
        kernel = np.array(layer.kernel)
        assert np.abs(kernel).max() <= limit and kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    assert network.layers[-1].activation is keras.activations.linear
    same, other = unbiased_dense_300_100(seed=3), unbiased_dense_300_100(seed=4)
    kernels = [masked_kernels.get_kernels(each)["hidden_2"] for each in (network, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).all()


def test_a_masked_layer_refuses_inputs_of_higher_rank():
    with pytest.raises(ValueError, match="expected ndim=2"):
        layers.MaskedDense(3)(np.ones((2, 3, 4), "float32"))


def test_a_stack_computes_what_its_members_do_and_mixes_nothing():
    networks = [small(seed) for seed in range(3)]
    together = models.stack(networks)
    assert members_of(together) == 3 and members_of(networks[0]) == 1
    x = np.random.default_rng(0).random((3, 5, 6, 6, 1)).astype("float32")
    with tf.GradientTape() as tape:
        found = together(x.reshape(15, 6, 6, 1))
        loss = tf.reduce_sum(found[5:10] ** 2)  # of the second member alone
    for member, network in enumerate(networks):
        np.testing.assert_allclose(found[5 * member : 5 * member + 5], network(x[member]), atol=ROUNDING)
    for gradient in tape.gradient(loss, together.trainable_variables):
        assert np.abs(gradient[1]).max() > 0
        assert not np.any(gradient[0]) and not np.any(gradient[2])


def test_a_single_network_is_its_own_stack_and_others_cannot_be_stacked():
    one = small(0)
    assert models.stack([one]) is one
    assert not can_be_stacked(tiny_network("masked"))
    with pytest.raises(ValueError, match="one at a time"):
        models.stack([tiny_network("masked"), tiny_network("masked")])
    with pytest.raises(ValueError, match="at least one"):
        models.stack([])
    with pytest.raises(ValueError, match="masked"):
        unbiased_dense_300_100(kernel="rewiring")
