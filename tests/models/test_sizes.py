"""The published networks have exactly the published sizes, layer order and initial connectivity."""

import functools
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models.table import LAYERS, SIZES
from tf_robust_sparse import layers, models
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.models.resnet import deep_resnet
from tf_robust_sparse.models.wide_resnet import wrn28_2


@pytest.fixture
def shapes_only(monkeypatch):
    """Kernel layers that remember the shape of their kernel and create no variable: wrn34_10 in a second."""

    class Shape:
        def add_kernel(self, shape):
            self.kernel_shape = shape

        def compute_effective_kernel(self):
            return np.zeros(self.kernel_shape, "float32")

    class ShapeDense(Shape, DenseOperation):
        pass

    class ShapeConv2D(Shape, Conv2DOperation):
        pass

    class Initial:
        def __init__(self, *args, initial_connectivity, seed, **kwargs):
            super().__init__(*args, **kwargs)
            self.initial_connectivity = initial_connectivity

    class InitialDense(Initial, ShapeDense):
        pass

    class InitialConv2D(Initial, ShapeConv2D):
        pass

    monkeypatch.setitem(layers.KERNELS, "plain", (ShapeDense, ShapeConv2D))
    monkeypatch.setitem(layers.KERNELS, "rewiring", (InitialDense, InitialConv2D))


def other_trainables(network):
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


@functools.cache
def at_one_per_cent(name):
    """Built once for two tests, which both ask for `shapes_only`."""
    return models.build(name, kernel="rewiring", connectivity=0.01)


def in_full(cases, chosen):
    """The cases as they are; the others than the chosen are left to `-m full`."""
    return [pytest.param(*each, marks=[] if chosen(*each) else pytest.mark.full) for each in cases]


@pytest.mark.parametrize(
    ("name", "num_classes"),
    in_full(itertools.product(SIZES, (10, 100)), lambda name, classes: classes == 10 or name in ("vgg16", "wrn28_2")),
)
def test_layers_and_entries(name, num_classes, shapes_only):
    count, entries, others, budgets = SIZES[name]
    network = at_one_per_cent(name) if num_classes == 10 else models.build(name, num_classes=num_classes)
    sizes = [math.prod(layer.kernel_shape) for layer in layers.kernel_layers(network)]
    assert len(sizes) == count
    assert sum(sizes) == entries[num_classes]
    assert other_trainables(network) == others + num_classes - 10
    if num_classes == 10:
        assert {p: int(sum(sizes) * p) for p in budgets} == {p: budget for p, (budget, _) in budgets.items()}
    if num_classes == 10 and name == "vgg16":
        assert sum(sizes) + other_trainables(network) == 15_311_818
    if num_classes == 10 and name in LAYERS:
        assert sizes == [size for size, _ in LAYERS[name]]


@pytest.mark.parametrize(
    ("name", "connectivity"),
    in_full(itertools.product(SIZES, (0.1, 0.01, 0.005)), lambda name, p: p == 0.01 or name in ("vgg16", "resnet18")),
)
def test_connections_at_the_start(name, connectivity, shapes_only):
    rare = connectivity == 0.01
    network = at_one_per_cent(name) if rare else models.build(name, kernel="rewiring", connectivity=connectivity)
    # The very expression that the rewiring layers evaluate.
    counts = [
        int(layer.initial_connectivity * math.prod(layer.kernel_shape)) for layer in layers.kernel_layers(network)
    ]
    assert sum(counts) == SIZES[name][3][connectivity][1]
    if connectivity == 0.01 and name in LAYERS:
        assert counts == [count for _, count in LAYERS[name]]


@pytest.mark.parametrize("name", ["vgg16", "wrn28_4"])
def test_rewiring_network_connects_what_the_table_says(name):
    network = models.build(name, kernel="rewiring", connectivity=0.01, seed=1)
    counts = [np.count_nonzero(layer.theta.numpy() > 0) for layer in layers.kernel_layers(network)]
    assert counts == [count for _, count in LAYERS[name]]
    assert sum(counts) == SIZES[name][3][0.01][1]
    if name == "vgg16":
        conv8 = network.get_layer("conv8")
        kernel = conv8.effective_kernel.numpy()
        # Truncated at two standard deviations and rescaled, He-normal keeps the standard deviation sqrt(2 / fan_in).
        assert np.std(kernel[kernel != 0]) == pytest.approx(math.sqrt(2 / 2304), rel=0.03)
        for layer in layers.kernel_layers(network):
            sign = layer.sign.numpy()
            assert abs(sign.mean()) < 4 / math.sqrt(sign.size)
            assert set(np.unique(sign)) == {-1, 1}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18_imagenet", 11_689_512), ("resnet34_imagenet", 21_797_672), ("resnet50_imagenet", 25_557_032)],
)
def test_residual_networks_of_imagenet_have_the_published_parameters(name, parameters, shapes_only):
    network = models.build(name)
    kernels = sum(math.prod(layer.kernel_shape) for layer in layers.kernel_layers(network))
    assert kernels + other_trainables(network) == parameters
    assert network.input_shape == (None, 224, 224, 3) and network.output_shape == (None, 1000)
    assert network.get_layer("pool").output.shape[1:3] == (1, 1)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(101, 44_549_160), pytest.param(152, 60_192_808, marks=pytest.mark.full)]
)
def test_deep_residual_networks_have_the_published_parameters(depth, parameters, shapes_only):
    network = models.build(f"resnet{depth}_imagenet")
    kernels = {layer.name: math.prod(layer.kernel_shape) for layer in layers.kernel_layers(network)}
    assert sum(kernels.values()) + other_trainables(network) == parameters
    assert len(kernels) == depth + 4 and network.output_shape == (None, 1000)  # and the shortcuts of four stages
    small = models.build(f"resnet{depth}", num_classes=7)
    expected = {**kernels, "stem": 3 * 3 * 3 * 64, "classifier": 2048 * 7}
    assert {layer.name: math.prod(layer.kernel_shape) for layer in layers.kernel_layers(small)} == expected
    assert small.input_shape == (None, 32, 32, 3) and small.output_shape == (None, 7)
    with pytest.raises(ValueError, match="`depth` must be one of 101, 152"):
        deep_resnet(50)


def test_order_of_the_budget_is_forward_with_the_shortcut_after_its_block():
    expected = [
        "stem",
        *[f"stage1_block{i}_conv{j}" for i in (1, 2) for j in (1, 2)],
        *[
            f"stage{stage}_{name}"
            for stage in (2, 3, 4)
            for name in ("block1_conv1", "block1_conv2", "block1_shortcut", "block2_conv1", "block2_conv2")
        ],
        "classifier",
    ]
    network = models.resnet18(seed=0)
    assert [layer.name for layer in layers.kernel_layers(network)] == expected
    copies = (
        keras.models.clone_model(network),
        keras.Model.from_config(network.get_config()),
        models.resnet18(padding_mode="symmetric"),
    )
    for copy in copies:
        assert [layer.name for layer in layers.kernel_layers(copy)] == expected


def test_order_of_the_budget_in_bottlenecks_and_wide_blocks(shapes_only):
    names = [layer.name for layer in layers.kernel_layers(models.resnet50())]
    assert names[:6] == [
        "stem",
        "stage1_block1_conv1",
        "stage1_block1_conv2",
        "stage1_block1_conv3",
        "stage1_block1_shortcut",
        "stage1_block2_conv1",
    ]
    names = [layer.name for layer in layers.kernel_layers(wrn28_2())]
    assert names[:5] == [
        "stem",
        "group1_block1_conv1",
        "group1_block1_conv2",
        "group1_block1_shortcut",
        "group1_block2_conv1",
    ]


def test_weight_decayed_small_networks_start_within_their_budget():
    for name in ("lenet5_caffe", "dense_300_100", "small_cnn", "large_cnn", "vgg4"):
        for connectivity in (0.01, 0.5):
            network = models.build(name, kernel="rewiring", connectivity=connectivity)
            thetas = [layer.theta.numpy() for layer in layers.kernel_layers(network)]
            connected = sum(np.count_nonzero(theta > 0) for theta in thetas)
            assert 0.4 * connectivity <= connected / sum(theta.size for theta in thetas) <= connectivity
            assert all(np.count_nonzero(theta > 0) >= theta.shape[-1] - 1 for theta in thetas)


@pytest.mark.parametrize(
    ("name", "of_cifar", "of_mnist"),
    [("small_cnn", 214_918, 166_406), ("large_cnn", 2_466_858, 1_974_762), ("vgg4", 2_425_930, None)],
)
def test_published_sizes_of_plain_cnns(name, of_cifar, of_mnist):
    for padding_mode in ("tf_same", "symmetric"):
        assert models.build(name, padding_mode=padding_mode).count_params() == of_cifar
        if of_mnist is not None:
            network = models.build(name, input_shape=(28, 28, 1), padding_mode=padding_mode)
            assert network.count_params() == of_mnist


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *[("vgg2_without_bn", 172_746), ("vgg4_without_bn", 459_466), ("vgg6_without_bn", 1_475_274)],
        *[("vgg8_without_bn", 5_276_362), ("vgg11_without_bn", 9_810_634), ("vgg13_without_bn", 9_994_954)],
        *[("vgg16_without_bn", 15_303_370), ("vgg2_bn", 173_002), ("vgg4_bn", 460_234), ("vgg6_bn", 1_477_066)],
        *[("vgg8_bn", 5_280_202), ("vgg11_bn", 9_816_138), ("vgg13_bn", 10_000_842), ("vgg16_bn", 15_311_818)],
        *[("wrn28_1", 369_498), ("wrn40_2", 2_243_546), ("plain_resnet", 4_624_770)],
        *[("lin_1", 30_730), ("lin_2", 308_310), ("lin_3", 318_410), ("lin_4", 318_410)],
    ],
)
def test_networks_of_the_table_have_the_parameters_of_hydra(name, parameters, shapes_only):
    """Counted on the published code, without the `sub_block1` of wide networks, which no forward pass uses."""
    network = models.build(name, padding_mode="symmetric")
    kernels = [math.prod(layer.kernel_shape) for layer in layers.kernel_layers(network)]
    assert sum(kernels) + other_trainables(network) == parameters
    assert network.name == name and network.output_shape == (None, 10)


def test_a_shape_may_be_a_tensor_shape():
    assert models.build("lin_1", input_shape=tf.TensorShape((32, 32, 3))).output_shape == (None, 10)


def test_vgg16_with_batch_norm_is_the_row_of_the_table(shapes_only):
    def graph(name):
        network = models.build(name, input_shape=(28, 28, 1))
        return [(node.layer.name, node.inputs) for node in layer_graph(network)]

    assert graph("vgg16_bn") == graph("vgg16")


def test_published_numbers_of_kept_weights():
    network = models.large_cnn(kernel="subnet", connectivity=0.01)
    kept = [layer.kept for layer in layers.kernel_layers(network)]
    assert kept == [9, 164, 185, 656, 20972, 2622, 52] and sum(kept) == 24_660
    assert sum(int(np.prod(layer.kernel.shape)) for layer in layers.kernel_layers(network)) == 2_465_632
    found = [int(np.count_nonzero(layer.effective_kernel)) for layer in layers.kernel_layers(network)]
    assert found == kept
