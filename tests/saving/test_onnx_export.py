"""The ONNX file answers as the network does, and holds only what verifiers read."""

import collections
import math

import keras
import numpy as np
import pytest

from tests.saving.networks import disturb, images, residual_network
from tf_robust_sparse import certify, layers, models, saving
from tf_robust_sparse.certify.bounds import training_margins
from tf_robust_sparse.models import vgg

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def answers(path, x):
    """What the file says to images or vectors, one at a time."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
    assert pixels.name == "pixels" and pixels.shape == [1, *x.shape[1:]] and pixels.type == "tensor(float)"
    return np.concatenate([session.run(["logits"], {"pixels": each[None]})[0] for each in x])


def exported(network, tmp_path, count=3):
    """The operators of the file, after a look at its answers."""
    path = saving.export_verifier_onnx(network, tmp_path / "network.onnx")
    x = images(count, shape=network.input_shape[1:])
    expected = network(x, training=False).numpy()
    np.testing.assert_allclose(answers(path, x), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return onnx.load(path).graph.node


def kinds(operators):
    return collections.Counter(operator.op_type for operator in operators)


def attribute(operator, name):
    return list(next(a for a in operator.attribute if a.name == name).ints)


@pytest.mark.parametrize("kernel", layers.KERNELS)
def test_every_kernel_form_with_residual_sums_and_batch_norm(kernel, tmp_path):
    network = residual_network(kernel)
    disturb(network, 3)
    operators = exported(network, tmp_path)
    assert kinds(operators) == {"Conv": 4, "BatchNormalization": 5, "Relu": 4, "Add": 1, "Flatten": 1, "Gemm": 2}
    stored = onnx.load(tmp_path / "network.onnx").graph.initializer
    kernels = {each.name: onnx.numpy_helper.to_array(each) for each in stored if each.name.endswith("/kernel")}
    for layer in layers.kernel_layers(network):
        assert np.count_nonzero(kernels[f"{layer.name}/kernel"]) == np.count_nonzero(layer.effective_kernel)


@pytest.mark.parametrize(
    ("name", "padding_mode"),
    [
        ("small_cnn", "tf_same"),
        ("small_cnn", "symmetric"),
        ("large_cnn", "symmetric"),
        ("vgg4", "tf_same"),
        ("wrn28_2", "symmetric"),
    ],
)
def test_architectures_with_both_paddings(name, padding_mode, tmp_path):
    shape = (32, 32, 3) if name == "wrn28_2" else (13, 10, 3)
    network = models.build(
        name, num_classes=7, input_shape=shape, kernel="rewiring", connectivity=0.3, padding_mode=padding_mode, seed=0
    )
    disturb(network, 1)
    operators = exported(network, tmp_path, count=2)
    assert not {"Transpose", "Pad", "Reshape", "Gather"} & set(kinds(operators))
    for operator in operators:
        if operator.op_type == "Conv":
            top, left, bottom, right = attribute(operator, "pads")
            assert (top, left) == (bottom, right)


def test_pooled_vgg_without_transposition(tmp_path, monkeypatch):
    monkeypatch.setitem(vgg.VGG_WIDTHS, 16, ((8, 8), (8, 8), (8, 8, 8), (16, 16, 16), (16, 16, 16)))
    network = models.vgg16(num_classes=10, kernel="masked", connectivity=0.2, seed=0)
    disturb(network, 1)
    found = kinds(exported(network, tmp_path, count=2))
    assert found["MaxPool"] and not {"Transpose", "Pad", "Reshape", "Gather"} & set(found)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_convolutions_pad_alike_at_every_size(padding, side, strides, tmp_path):
    for height, width in ((7, 8), (9, 6)):
        x = inputs = keras.Input((height, width, 2))
        x = keras.layers.Conv2D(3, side, strides, padding=padding, bias_initializer="normal")(x)
        operators = exported(keras.Model(inputs, keras.layers.Flatten()(x)), tmp_path)
        top, left, bottom, right = attribute(operators[0], "pads")
        assert (top, left) == (bottom, right)


def test_zero_padding_goes_into_the_convolutions_and_is_explicit_elsewhere(tmp_path):
    x = inputs = keras.Input((6, 5, 2))
    x = keras.layers.ZeroPadding2D(((1, 0), (0, 2)))(x)
    x = keras.layers.ZeroPadding2D(1)(x)
    a = keras.layers.Conv2D(3, 3, strides=2)(x)
    b = keras.layers.Conv2D(3, 3, strides=2, padding="same", name="again")(x)
    b = keras.layers.Conv2D(3, (2, 3), name="smaller")(b)
    c = keras.layers.MaxPooling2D(2)(x)
    flat = [keras.layers.Dense(4)(keras.layers.Flatten()(part)) for part in (a, b, c, x)]
    operators = exported(keras.Model(inputs, keras.layers.Add()(flat)), tmp_path)
    assert kinds(operators)["Pad"] == 1 and kinds(operators)["Conv"] == 3


def test_layers_on_vectors_keep_the_order_of_the_flatten(tmp_path):
    x = inputs = keras.Input((4, 3, 2))
    x = keras.layers.Conv2D(5, 2, activation="relu")(x)
    flat = keras.layers.Flatten()(x)
    v = keras.layers.Dropout(0.5)(layers.BatchNormalization(name="bn")(flat))
    v = keras.layers.ReLU()(v)
    other = keras.layers.Dense(30, use_bias=False)(flat)  # 30 entries in their own order
    v = keras.layers.Add()([v, other, flat])
    v = keras.layers.Rescaling(2.0, offset=0.5)(v)
    v = keras.layers.Normalization(mean=np.arange(30.0), variance=np.arange(1.0, 31))(v)
    image = keras.layers.Reshape((3, 5, 2))(v)
    image = keras.layers.Activation("relu")(keras.layers.Conv2D(4, 2)(image))
    network = keras.Model(inputs, keras.layers.Reshape((32,))(image))
    disturb(network, 2)
    assert kinds(exported(network, tmp_path))["Gather"] == 3  # the sum, the reshape, and the answer


def test_pooling_normalization_and_dilation(tmp_path):
    x = inputs = keras.Input((9, 9, 3))
    x = keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.05, 0.06])(x)
    x = keras.layers.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 0.1, 0.2])(x)
    x = keras.layers.Conv2D(4, 2, padding="same", dilation_rate=3, activation="relu")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = keras.layers.Conv2D(6, 3, padding="same", groups=2)(x)
    x = keras.layers.AveragePooling2D(2, strides=1, padding="same")(x)
    x = keras.layers.AveragePooling2D(2)(x)
    kept = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Add()([keras.layers.GlobalAveragePooling2D()(x), keras.layers.Flatten()(kept)])
    found = kinds(exported(keras.Model(inputs, keras.layers.Dense(3)(x)), tmp_path))
    assert found["GlobalAveragePool"] == 2 and found["AveragePool"] == 2


def test_vectors_and_sequential_models(tmp_path):
    stack = [keras.Input((6,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)]
    assert kinds(exported(keras.Sequential(stack), tmp_path)) == {"Gemm": 2, "Relu": 1}
    stack = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, use_bias=False)]
    exported(keras.Sequential(stack), tmp_path)


def test_whatever_has_bounds_can_be_exported(tmp_path):
    network = residual_network("masked")
    x, y = images(2), np.array([0, 3])
    margins, proven = (of(network, x, y, 0.0, "ibp").numpy() for of in (training_margins, certify.margins))
    logits = answers(saving.export_verifier_onnx(network, tmp_path / "a.onnx"), x)
    for i, label in enumerate(y):
        found = logits[i, label] - np.delete(logits[i], label)
        np.testing.assert_allclose(found, margins[i], rtol=1e-4, atol=1e-4)
        assert (found >= proven[i]).all()  # whatever the order of the other program's sums


def ending(*stack, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), *stack])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: ending(keras.layers.Flatten(), keras.layers.Dense(3, "tanh", name="odd")), "activation tanh of odd"),
        (lambda: ending(keras.layers.Flatten(), keras.layers.Softmax(name="s")), "layer s of type Softmax"),
        (lambda: ending(keras.layers.ReLU(max_value=6, name="r6")), "r6 is no plain ReLU"),
        (lambda: ending(keras.layers.Dense(3, name="d")), "d acts on the last"),
        (lambda: ending(keras.layers.ReLU()), "must end in logits"),
        (lambda: ending(keras.layers.Conv2D(2, 3), shape=(None, None, 3)), "known size"),
        (lambda: ending(keras.layers.Reshape((8, 24))), "known size"),
    ],
)
def test_what_is_not_exported_is_named_and_nothing_is_written(network, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        saving.export_verifier_onnx(network(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_layer_called_twice_and_odd_paths_are_refused(tmp_path):
    inputs, twice = keras.Input((4,)), keras.layers.Dense(4, name="twice")
    with pytest.raises(ValueError, match="twice is called twice"):
        saving.export_verifier_onnx(keras.Model(inputs, twice(twice(inputs))), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        saving.export_verifier_onnx(residual_network(), tmp_path / "a.pb")


def test_shapes_inside_are_known(tmp_path):
    network = models.small_cnn(num_classes=4, input_shape=(8, 8, 1), seed=0)
    model = onnx.shape_inference.infer_shapes(onnx.load(saving.export_verifier_onnx(network, tmp_path / "a.onnx")))
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.value_info]
    assert len(shapes) == 7 and all(math.prod(shape) for shape in shapes)
    assert model.opset_import[0].version == 13
