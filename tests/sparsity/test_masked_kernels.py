import numpy as np
import pytest

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse.sparsity import masked_kernels


@pytest.fixture
def network():
    return tiny_network("masked")


def halves(network, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.random(kernel.shape) < 0.5 for name, kernel in masked_kernels.get_kernels(network).items()}


def test_masks_are_written_read_and_counted(network):
    masks = halves(network)
    masked_kernels.set_masks(network, {name: mask.astype("float32") for name, mask in masks.items()})
    for name, mask in masked_kernels.get_masks(network).items():
        np.testing.assert_array_equal(mask, masks[name])
    assert masked_kernels.remaining(masks) == (
        sum(mask.sum() for mask in masks.values()),
        sum(mask.size for mask in masks.values()),
    )


def test_kernels_are_kept_under_the_mask_and_have_no_influence(network):
    x, _ = tiny_images(5)
    before = masked_kernels.get_kernels(network)
    masked_kernels.set_masks(network, halves(network))
    masked_kernels.verify(network, x)
    for name, kernel in masked_kernels.get_kernels(network).items():
        np.testing.assert_array_equal(kernel, before[name])
    applied = masked_kernels.apply_masks(before, masked_kernels.get_masks(network))
    assert all(((applied[name] == 0) | (applied[name] == before[name])).all() for name in before)


def test_a_network_whose_masks_do_nothing_is_found_out(network, monkeypatch):
    x, _ = tiny_images(5)
    masked_kernels.set_masks(network, halves(network))
    layer = masked_kernels.find(network)[0].layer
    monkeypatch.setattr(layer, "compute_effective_kernel", lambda: layer.kernel.value * 1)
    with pytest.raises(RuntimeError, match="masks are not applied"):
        masked_kernels.verify(network, x)


def test_bad_masks_are_refused(network):
    masks = halves(network)
    with pytest.raises(ValueError, match=r"0 and 1 alone\. Received: 0\.5"):
        masked_kernels.set_masks(network, masks | {"conv1": np.full((3, 3, 1, 8), 0.5)})
    with pytest.raises(ValueError, match="has shape"):
        masked_kernels.set_masks(network, masks | {"conv1": np.ones((3, 3, 8, 1))})
    with pytest.raises(ValueError, match="must name each masked layer"):
        masked_kernels.set_masks(network, {"conv1": masks["conv1"]})
    with pytest.raises(ValueError, match='kernel="masked"'):
        masked_kernels.get_masks(tiny_network("rewiring"))
