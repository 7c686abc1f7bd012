"""Files of the published layout, made here from known networks, go into every form of network."""

import functools
import os
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saving.networks import disturb, images
from tf_robust_sparse import layers, models, saving
from tf_robust_sparse.models import wide_resnet

WIDTH = 32


def published_order(network):
    """Names of the layers in the order of the published lists, written down from the original networks."""
    if network.name == "vgg16":
        return [f"{kind}{i}" for i in range(1, 14) for kind in ("conv", "bn")] + ["dense14", "dense15", "classifier"]
    if network.name.startswith("wrn"):
        names = ["stem"]
        for group in (1, 2, 3):
            for block in (1, 2):
                names += [f"group{group}_block{block}_{part}" for part in ("bn1", "conv1", "bn2", "conv2")]
                names += [f"group{group}_block1_shortcut"] if block == 1 else []
        return [*names, "final_bn", "classifier"]
    if network.name == "resnet18":
        counts, parts = (2, 2, 2, 2), ("conv1", "bn1", "conv2", "bn2")
    else:
        counts, parts = (3, 4, 6, 3), ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    names = ["stem", "stem_bn"]
    for stage, count in enumerate(counts, start=1):
        for block in range(1, count + 1):
            names += [f"stage{stage}_block{block}_{part}" for part in parts]
            if block == 1 and (stage > 1 or network.name == "resnet50"):
                names += [f"stage{stage}_block1_{part}" for part in ("shortcut", "shortcut_bn")]
    return [*names, "classifier"]


def published_list(network):
    values = []
    for name in published_order(network):
        layer = network.get_layer(name)
        if hasattr(layer, "theta"):
            values += [layer.theta.numpy(), layer.sign.numpy().astype("float32")]
        elif hasattr(layer, "kernel"):
            values.append(layer.kernel.numpy())
        else:
            values += [v.numpy() for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)]
        if getattr(layer, "bias", None) is not None:
            values.append(layer.bias.numpy())
    return values


def network_of(name, kernel, seed=0, num_classes=10):
    network = models.build(name, kernel=kernel, connectivity=0.1, seed=seed, num_classes=num_classes)
    disturb(network, seed)
    return network


def write(path, values, as_variables=True):
    if as_variables:
        values = [tf.Variable(value, name="T", trainable=i % 2 == 0) for i, value in enumerate(values)]
    with path.open("wb") as file:
        pickle.dump({"param_list": values}, file, protocol=pickle.HIGHEST_PROTOCOL)
    return path


def logits(network):
    return network(images(2, shape=(WIDTH, WIDTH, 3)), training=False).numpy()


@pytest.fixture(scope="module", autouse=True)
def _two_blocks():
    """Wide residual networks have two blocks in each group, not four."""
    logits_of = wide_resnet.wide_resnet_logits
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wide_resnet, "wide_resnet_logits", lambda build, _, widening: logits_of(build, 16, widening))
        yield


@pytest.fixture(scope="module")
def sources():
    """A sparse and a dense network with their logits; not to be changed."""
    made = [network_of("wrn28_2", kernel) for kernel in ("rewiring", "plain")]
    return [(network, logits(network)) for network in made]


@pytest.mark.parametrize(
    ("kernel", "as_variables"),
    [
        ("rewiring", True),
        pytest.param("rewiring", False, marks=pytest.mark.full),
        ("masked", True),
        pytest.param("plain", True, marks=pytest.mark.full),
    ],
)
def test_sparse_list_into_every_form(kernel, as_variables, sources, tmp_path):
    (source, expected), target = sources[0], network_of("wrn28_2", kernel, seed=1)
    file = write(tmp_path / "a.pickle", published_list(source), as_variables)
    saving.import_reference_weights(file, target)
    np.testing.assert_allclose(logits(target), expected, atol=1e-5)
    for a, b in zip(layers.kernel_layers(source), layers.kernel_layers(target), strict=True):
        np.testing.assert_array_equal(a.effective_kernel, b.effective_kernel)
        if kernel == "rewiring":
            np.testing.assert_array_equal(a.theta.numpy(), b.theta.numpy())
            np.testing.assert_array_equal(a.sign.numpy(), b.sign.numpy())
        if kernel == "masked":
            np.testing.assert_array_equal(a.theta.numpy() > 0, b.kernel_mask.numpy())


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel, marks=pytest.mark.full if kernel in ("masked", "bayesian") else [])
        for kernel in layers.KERNELS
        if kernel not in ("signed", "binary")
    ],
)
def test_dense_list_into_every_form(kernel, sources, tmp_path):
    (source, expected), target = sources[1], network_of("wrn28_2", kernel, seed=1)
    saving.import_reference_weights(write(tmp_path / "a.pickle", published_list(source)), target)
    np.testing.assert_allclose(logits(target), expected, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["vgg16", pytest.param("resnet18", marks=pytest.mark.full), pytest.param("resnet50", marks=pytest.mark.full)],
)
def test_order_of_the_other_architectures(name, tmp_path):
    source = network_of(name, "plain")
    target = models.build(name, seed=1)
    values = published_list(source)
    assert len(values) == len(source.get_weights())
    saving.import_reference_weights(write(tmp_path / "a.pickle", values, as_variables=False), target)
    for a, b in zip(source.variables, target.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def unchanged(network, path, message):
    before = network.get_weights()
    with pytest.raises(ValueError, match=message):
        saving.import_reference_weights(path, network)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_named_and_nothing_is_assigned(tmp_path):
    network = network_of("wrn28_2", "rewiring")
    values = published_list(network_of("wrn28_2", "rewiring", num_classes=100))
    file = write(tmp_path / "a.pickle", values, as_variables=False)
    unchanged(network, file, r"Array 84 .* shape \(128, 100\), but theta of classifier in wrn28_2 has \(128, 10\)")
    write(file, values[:-1], as_variables=False)
    unchanged(network, file, r"holds 86 arrays; wrn28_2 takes 87 of a sparse network or 70 of a dense one")
    values = published_list(network)
    write(file, [*values[:1], values[1] * 2, *values[2:]], as_variables=False)
    unchanged(network, file, "the sign of stem, has values other than -1 and 1")
    write(file, [values[0] * np.nan, *values[1:]], as_variables=False)
    unchanged(network, file, r"Array 0 .* holds infinities or NaN")


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(
    "content",
    [
        Evil(os.system, "touch hacked"),
        Evil(functools.partial(os.system, "touch hacked")),
        {"param_list": [Evil(functools.partial(os.system, "touch hacked"))]},
        Evil(functools.partial, print),
    ],
)
def test_pickles_that_call_something_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"not a published list of weights: this pickle tries to"):
        saving.import_reference_weights("a.pickle", keras.Sequential([keras.Input((3,))]))
    assert not (tmp_path / "hacked").exists()


def test_missing_damaged_and_foreign_files(tmp_path):
    network = network_of("small_cnn", "plain")
    unchanged(network, tmp_path / "a.pickle", "There is no file")
    values = published_list_of_small(network)
    file = write(tmp_path / "a.pickle", values)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    unchanged(network, file, "not a complete, plain pickle")
    file.write_bytes(pickle.dumps({"weights": values}))
    unchanged(network, file, "Published weights must be a list of arrays")
    file.write_bytes(pickle.dumps([1, 2]))
    unchanged(network, file, "Published weights must be a list of arrays")


def published_list_of_small(network):
    return [w for layer in network.layers for w in layer.get_weights()]
