"""What every builder promises: logits, twins, seeds, names, paddings, image sizes, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import layers, models, saving
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.models import vgg
from tf_robust_sparse.models.resnet import resnet18_imagenet
from tf_robust_sparse.models.wide_resnet import wrn28_2

SMALL = ["small_cnn", "large_cnn", "vgg4", "lenet5_caffe", "lenet_conv", "dense_300_100"]
CONVOLUTIONAL = ["wrn28_2", *SMALL]


@pytest.fixture
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


def test_every_builder_is_in_the_catalog_under_its_name():
    assert set(models.__all__) - {"NETWORKS", "Variant", "build", "from_keras", "stack"} < set(models.NETWORKS)
    for name in SMALL:
        assert models.build(name).name == name


def test_unknown_network_lists_the_names():
    with pytest.raises(ValueError, match=r"must be one of vgg16, vgg16_dropout, resnet18.*Received: name='resnet19'"):
        models.build("resnet19")


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        (name, kernel)
        for i, name in enumerate(CONVOLUTIONAL)
        for j, kernel in enumerate(layers.KERNELS)
        if (i + j) % 7 == 0
    ],
)
def test_logits_in_every_parametrization(name, kernel):
    network = models.build(name, num_classes=7, input_shape=(32, 32, 3), kernel=kernel, connectivity=0.2, seed=0)
    assert type(network) is keras.Model or isinstance(network, keras.Model)
    # Kernels of 1 and -1 need batch norm that has seen their outputs.
    logits = network(
        np.random.default_rng(0).random((3, 32, 32, 3), "float32"), training=kernel in ("signed", "binary")
    )
    assert logits.shape == (3, 7)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()
    assert np.std(logits) > 0
    dense_layer, conv_layer = layers.KERNELS[kernel]
    assert all(type(layer) in (dense_layer, conv_layer) for layer in layers.kernel_layers(network))
    assert keras.activations.serialize(network.layers[-1].activation) == "linear"


@pytest.mark.parametrize(
    "name", [pytest.param("wrn28_2", marks=pytest.mark.full), "large_cnn", "lenet_conv", "dense_300_100"]
)
def test_twins_differ_in_the_layer_class_alone(name):
    def graph(kernel):
        network = models.build(name, kernel=kernel, connectivity=0.1)
        return [(node.layer.name, node.inputs) for node in layer_graph(network)]

    assert graph("plain") == graph("masked") == graph("rewiring")


def test_layer_names_do_not_depend_on_what_was_built_before():
    first, second = wrn28_2(), wrn28_2(name="another")
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    assert len({v.path for v in first.variables}) == len(first.variables)


@pytest.mark.parametrize("kernel", layers.KERNELS)
def test_equal_seeds_give_equal_networks(kernel):
    def weights(seed):
        return models.small_cnn(kernel=kernel, connectivity=0.1, seed=seed).get_weights()

    first, again, other = weights(3), weights(3), weights(4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_no_two_layers_share_a_seed():
    kernels = [layer.kernel.numpy() for layer in layers.kernel_layers(wrn28_2(seed=0))]
    same_shape = [kernel for kernel in kernels if kernel.shape == (3, 3, 32, 32)]
    assert len({kernel.tobytes() for kernel in same_shape}) == len(same_shape) > 1


def test_without_a_seed_the_global_generators_decide():
    def weights():
        return models.small_cnn(kernel="rewiring", connectivity=0.1).get_weights()[0]

    keras.utils.set_random_seed(5)
    first, second = weights(), weights()
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(first, weights())
    assert (first != second).any()


@pytest.mark.parametrize("policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.full), "mixed_float16"])
def test_logits_and_theta_are_float32_under_mixed_precision(policy, float32_policy):
    keras.config.set_dtype_policy(policy)
    network = wrn28_2(kernel="rewiring", connectivity=0.1, seed=0)
    assert network(np.zeros((1, 32, 32, 3), "float32")).dtype == tf.float32
    assert network.get_layer("stem").compute_dtype == policy.removeprefix("mixed_")
    for layer in layers.kernel_layers(network):
        assert layer.theta.dtype == "float32"
        assert set(np.unique(layer.sign.numpy())) == {-1, 1}


def test_symmetric_padding_pads_both_sides_of_strided_convolutions():
    same = wrn28_2(seed=0)
    symmetric = wrn28_2(seed=0, padding_mode="symmetric")
    padded = [layer.name for layer in symmetric.layers if isinstance(layer, keras.layers.ZeroPadding2D)]
    assert padded == ["group2_block1_conv1_padding", "group3_block1_conv1_padding"]
    assert [layer.output.shape for layer in layers.kernel_layers(same)] == [
        layer.output.shape for layer in layers.kernel_layers(symmetric)
    ]
    symmetric.set_weights(same.get_weights())
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    assert np.abs(same(x) - symmetric(x)).max() > 1e-3

    conv = symmetric.get_layer("group2_block1_conv1")
    inputs = np.random.default_rng(1).random((1, 8, 8, 32), "float32")
    outputs = conv(tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]]))
    corner = np.einsum("hwi,hwio->o", inputs[0, :2, :2], conv.kernel.numpy()[1:, 1:])
    np.testing.assert_allclose(outputs[0, 0, 0], corner, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("vgg16", (28, 28, 1), 256),
        pytest.param("vgg16", (16, 16, 3), 256, marks=pytest.mark.full),
        pytest.param("resnet18", (28, 28, 1), 512, marks=pytest.mark.full),
        ("resnet18", (64, 64, 3), 2048),
        pytest.param("resnet18", (8, 8, 3), 512, marks=pytest.mark.full),
        pytest.param("wrn28_2", (28, 28, 1), 128, marks=pytest.mark.full),
        ("wrn28_2", (64, 64, 3), 512),
        ("lenet5_caffe", (28, 28, 1), 500),
        ("small_cnn", (28, 28, 1), 100),
    ],
)
def test_image_sizes(name, shape, features, monkeypatch):  # the features that reach the classifier
    class NoKernel:
        def add_kernel(self, shape):
            self.kernel_shape = shape

        def compute_effective_kernel(self):
            return tf.zeros(self.kernel_shape)

    operations = (DenseOperation, Conv2DOperation)
    forms = tuple(type(f"Zero{operation.__name__}", (NoKernel, operation), {}) for operation in operations)
    monkeypatch.setitem(layers.KERNELS, "plain", forms)
    network = models.build(name, input_shape=shape)
    assert network.get_layer("classifier").kernel_shape == (features, 10)
    if name == "vgg16":
        assert network.get_layer("flatten").output.shape[1:] == (512,)
    assert network(np.zeros((2, *shape), "float32")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "smallest"), [("vgg16", 16), ("resnet18", 8), ("wrn28_2", 4), ("lenet5_caffe", 16), ("small_cnn", 4)]
)
def test_images_that_are_too_small_are_named(name, smallest):
    message = rf"{name} needs images of at least {smallest}x{smallest} pixels.*Received"
    with pytest.raises(ValueError, match=message):
        models.build(name, input_shape=(32, smallest - 1, 3))


def test_lenet5_is_caffes():
    network = models.lenet5_caffe()
    shapes = [layer.kernel.shape for layer in layers.kernel_layers(network)]
    assert shapes == [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]
    assert network.count_params() == 431_080
    assert [keras.activations.serialize(layer.activation) for layer in layers.kernel_layers(network)] == [
        "linear",
        "linear",
        "relu",
        "linear",
    ]


def test_dense_300_100_has_the_classic_count():
    assert models.dense_300_100().count_params() == 266_610


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "sparse"}, "`kernel` must be one of plain, masked, rewiring.*'sparse'"),
        ({"kernel": "rewiring"}, "`connectivity` is needed"),
        ({"kernel": "rewiring", "connectivity": 0.0}, r"in \(0, 1\].*Received: connectivity=0.0"),
        ({"connectivity": 1.5}, r"in \(0, 1\].*Received: connectivity=1.5"),
        ({"connectivity": float("nan")}, r"in \(0, 1\]"),
        ({"padding_mode": "same"}, "`padding_mode` must be one of tf_same, symmetric.*'same'"),
        ({"seed": -1}, "`seed` must be a non-negative integer"),
        ({"seed": 0.5}, "`seed` must be a non-negative integer"),
        ({"num_classes": 0}, "`num_classes` must be a positive integer"),
        ({"input_shape": (32, 32)}, "three positive integers"),
        ({"input_shape": (32, None, 3)}, "three positive integers"),
        ({"input_shape": None}, "three positive integers"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.small_cnn(**arguments)


def test_synchronized_batch_norm_reaches_every_batch_norm():
    network = wrn28_2(synchronized_batch_norm=True)
    norms = [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(norms) == 25
    assert all(layer.synchronized and layer.momentum == 0.9 and layer.epsilon == 1e-5 for layer in norms)


def test_the_shortcut_of_a_wide_block_takes_the_activated_tensor():
    origins = {node.layer.name: node.inputs for node in layer_graph(wrn28_2())}
    assert origins["group1_block1_shortcut"] == ("group1_block1_relu1",)
    assert origins["group1_block1_add"] == ("group1_block1_conv2", "group1_block1_shortcut")
    assert origins["group1_block2_add"] == ("group1_block2_conv2", "group1_block1_add")


@pytest.mark.parametrize("padding_mode", [pytest.param("tf_same", marks=pytest.mark.full), "symmetric"])
def test_networks_of_imagenet_take_pixels_and_any_size(padding_mode):
    network = resnet18_imagenet(3, (40, 33, 3), padding_mode=padding_mode, seed=0)
    x = np.random.default_rng(0).random((2, 40, 33, 3), "float32")
    assert network(x).shape == (2, 3) and np.isfinite(network(x)).all()
    normalized = network.get_layer("normalization")(x)
    np.testing.assert_allclose(normalized, (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], rtol=1e-4, atol=1e-5)
    gray = resnet18_imagenet(3, (32, 32, 1), seed=0)
    assert not any(isinstance(layer, keras.layers.Normalization) for layer in gray.layers)
    # Padded by zeros on both sides or by nothing, the pool of values that are not negative is the same.
    x = np.abs(np.random.default_rng(0).normal(size=(1, 16, 16, 64))).astype("float32")
    pool = network.get_layer("stem_pool")
    before = network.get_layer("stem_pool_padding")(x) if padding_mode == "symmetric" else x
    padded = np.pad(
        x, ((0, 0), (1, 1), (1, 1), (0, 0)) if padding_mode == "symmetric" else ((0, 0), (0, 1), (0, 1), (0, 0))
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(pool(before), windows.max((-2, -1)))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lenet5_caffe", {}),
        ("wrn28_1", {"padding_mode": "symmetric"}),
        pytest.param("vgg16_dropout", {"gates": True}, marks=pytest.mark.full),
        ("vgg2_bn", {"kernel": "masked"}),
        ("dense_300_100", {}),
    ],
)
def test_the_image_format_of_keras_json_changes_nothing(name, arguments, monkeypatch):
    monkeypatch.setitem(vgg.VGG_WIDTHS, 16, ((4, 4), (4, 4), (8, 8, 8), (8, 8, 8), (8, 8, 8)))
    x = np.random.default_rng(0).random((2, 32, 36, 3), "float32")
    expected = models.build(name, input_shape=(32, 36, 3), seed=0, **arguments)
    keras.config.set_image_data_format("channels_first")
    try:
        network = models.build(name, input_shape=(32, 36, 3), seed=0, **arguments)
        stripped = saving.strip(network)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert [layer.output.shape for layer in network.layers] == [layer.output.shape for layer in expected.layers]
    for each in (network, stripped):
        np.testing.assert_allclose(each(x), expected(x), atol=1e-5)
