"""What residual networks of the binary sub-networks have that the usual ones have not, and their small versions."""

import math

import keras
import numpy as np
import pytest

from tests.models.test_sizes import in_full, shapes_only  # noqa: F401
from tf_robust_sparse import layers, models, sparsity
from tf_robust_sparse.models.resnet import small_resnet
from tf_robust_sparse.sparsity.allocation import adaptive_fractions

METHOD = models.Variant(affine_batch_norm=False, classifier_bias=False, final_batch_norm=True)

# Entries of the kernels, without batch norm.
NARROW = {
    ("resnet34_p1", 10): 214_652,
    ("resnet34_p05", 10): 212_021,
    ("resnet34_p01", 10): 199_198,
    ("resnet34_p0", 10): 197_678,
    ("resnet34_p01", 100): 201_808,
    ("resnet34_p01_imagenet", 100): 204_568,
    ("resnet18_p01", 10): 99_550,
    ("resnet18_p1", 10): 112_430,
    ("resnet50_p01", 10): 227_718,
    ("resnet50_p1", 10): 239_188,
}


@pytest.mark.parametrize(
    ("name", "num_classes"),
    in_full(
        NARROW, lambda name, classes: name in ("resnet34_p1", "resnet34_p01_imagenet", "resnet18_p1", "resnet50_p1")
    ),
)
def test_published_sizes_of_the_small_networks(name, num_classes, shapes_only):  # noqa: F811
    variant = METHOD
    side = 224 if "imagenet" in name else 32
    network = models.build(name, num_classes=num_classes, input_shape=(side, side, 3), variant=variant)
    sizes = [math.prod(layer.kernel_shape) for layer in layers.kernel_layers(network)]
    assert sum(sizes) == NARROW[name, num_classes]
    assert network.output_shape == (None, num_classes)
    assert not network.trainable_variables  # no bias, no scale


# Connections that stay in all of 1 % for the exponents 0, 0.1, 0.5 and 1, and entries.
KEPT = {
    ("resnet18", 10): ((111_661, 111_662, 111_663, 111_663), 11_164_352),
    ("resnet34", 10): ((212_683, 212_685, 212_686, 212_685), 21_265_088),
    ("resnet50", 10): ((234_728, 234_729, 234_729, 234_730), 23_467_712),
    ("resnet34", 100): ((213_120, 213_146, 213_145, 213_146), 21_311_168),
    ("resnet34_imagenet", 100): ((213_194, 213_224, 213_222, 213_223), 21_318_848),
}
CLAMPED = {  # those that keep everything
    ("resnet18", 10, 0): {"stem", "classifier"},
    ("resnet34", 10, 0): {"stem", "classifier"},
    ("resnet50", 10, 0): {"stem", "stage1_block1_conv1"},
    ("resnet34", 100, 0): {"stem"},
    **{(name, classes, 0.1): {"stem"} for name, classes in KEPT if "imagenet" not in name},
}


@pytest.mark.parametrize(("name", "num_classes"), KEPT)
def test_published_totals_of_adaptive_allocation(name, num_classes, shapes_only):  # noqa: F811
    side = 224 if "imagenet" in name else 32
    network = models.build(name, num_classes=num_classes, input_shape=(side, side, 3), variant=METHOD)
    found = layers.kernel_layers(network)
    sizes = [math.prod(layer.kernel_shape) for layer in found]
    totals, entries = KEPT[name, num_classes]
    assert sum(sizes) == entries
    for exponent, total in zip((0, 0.1, 0.5, 1), totals, strict=True):
        fractions = adaptive_fractions(sizes, 0.01, exponent)
        assert sum(n - int((1 - k) * n) for n, k in zip(sizes, fractions, strict=True)) == total
        clamped = {layer.name for layer, fraction in zip(found, fractions, strict=True) if fraction == 1}
        assert clamped == CLAMPED.get((name, num_classes, exponent), set())


def test_published_fractions_of_resnet34(shapes_only):  # noqa: F811
    network = models.build("resnet34", variant=METHOD)
    found = layers.kernel_layers(network)
    sizes = [math.prod(layer.kernel_shape) for layer in found]
    fractions = adaptive_fractions(sizes, 0.01, 0.1)
    kept = {
        layer.name: (fraction, n - int((1 - fraction) * n))
        for layer, fraction, n in zip(found, fractions, sizes, strict=True)
    }
    for name, fraction, count in (
        ("stem", 1.0, 1728),
        ("stage1_block1_conv1", 0.131064, 4832),
        ("stage2_block1_conv1", 0.070237, 5179),
        ("stage2_block1_conv2", 0.037639, 5551),
        ("stage2_block1_shortcut", 0.507422, 4157),
        ("stage3_block1_conv1", 0.020170, 5949),
        ("stage3_block6_conv2", 0.010809, 6376),
        ("stage3_block1_shortcut", 0.145719, 4775),
        ("stage4_block1_conv1", 0.005793, 6834),
        ("stage4_block1_conv2", 0.0031045, 7325),
        ("stage4_block3_conv2", 0.0031045, 7326),
        ("stage4_block1_shortcut", 0.041848, 5486),
        ("classifier", 0.774596, 3966),
    ):
        assert kept[name] == (pytest.approx(fraction, abs=1e-6), count), name
    assert sum(count for _, count in kept.values()) / sum(sizes) == pytest.approx(0.0100016, abs=1e-7)


def test_the_last_batch_norm_normalizes_the_logits_of_a_batch():
    x = np.random.default_rng(0).random((64, 32, 32, 3), "float32")
    networks = {}
    for last in (True, False):
        network = models.build(
            "resnet18_p1",
            kernel="signed",
            seed=0,
            variant=METHOD._replace(final_batch_norm=last, normalization="cifar10"),
        )
        sparsity.uniform_scores(network, 0.01)
        sparsity.set_keep_fractions(network, sparsity.keep_fractions(network, 0.01, "adaptive", 0.1))
        networks[last] = np.asarray(network(x, training=True))
    assert np.abs(networks[True].mean(0)).max() < 1e-4
    np.testing.assert_allclose(networks[True].var(0), 1, atol=1e-3)
    assert np.abs(networks[False].mean(0)).max() > 1


def test_variants_change_what_they_say():
    usual = models.build("resnet18_p1", num_classes=4)
    variant = models.Variant("cifar10", leaky_relu_slope=0.1, first_kernel="plain", last_kernel="masked")
    other = models.build("resnet18_p1", num_classes=4, kernel="subnet", variant=variant)
    names = [layer.name for layer in other.layers]
    assert names[:2] == ["pixels", "normalization"] and "normalization" not in [layer.name for layer in usual.layers]
    kinds = [type(layer).__name__ for layer in layers.kernel_layers(other)]
    assert kinds[0] == "PlainConv2D" and kinds[-1] == "MaskedDense" and set(kinds[1:-1]) == {"SubnetConv2D"}
    slopes = {layer.negative_slope for layer in other.layers if isinstance(layer, keras.layers.ReLU)}
    assert slopes == {0.1}
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    normalized = np.asarray(other.get_layer("normalization")(x))
    np.testing.assert_allclose(normalized, (x - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010], atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (models.Variant("mnist"), r"must be one of cifar10, cifar100, imagenet"),
        (models.Variant(leaky_relu_slope=2), r"`leaky_relu_slope` must be in \[0, 1\)"),
        (models.Variant(last_kernel="odd"), r"`last_kernel` must be one of plain"),
    ],
)
def test_bad_variants(variant, message):
    with pytest.raises(ValueError, match=message):
        models.build("resnet18_p1", variant=variant)


def test_bad_widths():
    with pytest.raises(ValueError, match="`depth` must be one of 18, 34, 50"):
        small_resnet(18, "p2")
