"""State dicts in PyTorch's names and layouts go into our networks, with equal logits where torch is installed."""

import re

import numpy as np
import pytest

from tests.saving.networks import disturb
from tf_robust_sparse import layers, models, saving
from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.models import wide_resnet

IMAGE = (32, 32, 3)


def network_of(name, seed=0, kernel="plain", **arguments):
    arguments = {"num_classes": 7, "input_shape": IMAGE, "padding_mode": "symmetric", **arguments}
    network = models.build(name, kernel=kernel, seed=seed, **arguments)
    disturb(network, seed)
    return network


def pytorch_name(layer):
    """The module of a residual network's layer, written down from the originals."""
    name = {"stem": "conv1", "stem_bn": "bn1", "final_bn": "bn1", "classifier": "fc"}.get(layer.name)
    if name:
        return name
    group, block, part = re.fullmatch(r"(?:stage|group)(\d)_block(\d)_(\w+)", layer.name).groups()
    if layer.name.startswith("group"):
        return f"block{group}.layer.{int(block) - 1}.{'convShortcut' if part == 'shortcut' else part}"
    return f"layer{group}.{int(block) - 1}.{ {'shortcut': 'shortcut.0', 'shortcut_bn': 'shortcut.1'}.get(part, part) }"


def state_dict(network, flattened=None):
    """The state dict that the originals would write of `network`; `flattened` is (height, width, channels)."""
    state, numbers = {}, iter(range(1000))
    residual = any(layer.name == "stem" for layer in network.layers)
    for node in layer_graph(network):
        layer = node.layer
        is_norm = hasattr(layer, "moving_mean")
        if not is_norm and not hasattr(layer, "compute_effective_kernel"):
            continue
        name = pytorch_name(layer) if residual else f"features.{next(numbers)}"
        if is_norm:
            state[f"{name}.weight"], state[f"{name}.bias"] = layer.gamma.numpy(), layer.beta.numpy()
            state[f"{name}.running_mean"] = layer.moving_mean.numpy()
            state[f"{name}.running_var"] = layer.moving_variance.numpy()
            state[f"{name}.num_batches_tracked"] = np.array(5)
            continue
        for entry, value in (("weight", layer.kernel.numpy()), ("popup_scores", getattr(layer, "scores", None))):
            if value is None:
                continue
            value = np.asarray(value)
            if value.ndim == 4:
                value = np.einsum("hwio->oihw", value)
            else:
                rows = value
                if flattened and rows.shape[0] == np.prod(flattened):
                    rows = np.concatenate([rows[c :: flattened[2]] for c in range(flattened[2])])
                value = rows.T
            state[f"{name}.{entry}"] = value
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias.numpy()
    return state


def images(count=4):
    return np.random.default_rng(0).random((count, *IMAGE), "float32")


def logits(network):
    return network(images(), training=False).numpy()


def assert_same(a, b):
    for one, other in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize(
    ("name", "flattened"),
    [
        pytest.param("wrn28_2", None, marks=pytest.mark.full),
        pytest.param("resnet18", None, marks=pytest.mark.full),
        pytest.param("resnet50", None, marks=pytest.mark.full),
        pytest.param("resnet18_imagenet", None, marks=pytest.mark.full),
        ("vgg16", (2, 2, 512)),
        ("small_cnn", (8, 8, 32)),
        ("large_cnn", (8, 8, 64)),
    ],
)
def test_a_state_dict_finds_its_layers(name, flattened, tmp_path):
    source, target = network_of(name), network_of(name, seed=1)
    state = state_dict(source, flattened)
    # As a data-parallel model writes it, in an order of no meaning.
    np.savez(tmp_path / "a.npz", **{f"module.{key}": state[key] for key in sorted(state, reverse=True)})
    saving.import_pytorch_weights(tmp_path / "a.npz", target)
    assert_same(source, target)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_scores_and_connections(suffix, tmp_path, monkeypatch):
    logits_of = wide_resnet.wide_resnet_logits  # one block in each group
    monkeypatch.setattr(wide_resnet, "wide_resnet_logits", lambda build, _, widening: logits_of(build, 10, widening))
    source = network_of("wrn28_2", kernel="subnet", connectivity=0.1)
    state = state_dict(source)
    path = tmp_path / f"a.{suffix}"

    def write(entries):
        if suffix == "npz":
            np.savez(path, **entries)
        else:
            pytest.importorskip("safetensors.numpy").save_file(
                {key: np.ascontiguousarray(value) for key, value in entries.items()}, path
            )

    write(state)
    target = network_of("wrn28_2", seed=1, kernel="subnet", connectivity=0.1)
    saving.import_pytorch_weights(path, target)
    assert_same(source, target)
    np.testing.assert_allclose(logits(target), logits(source), atol=1e-6)
    plain = network_of("wrn28_2", seed=1)
    before = plain.get_weights()
    with pytest.raises(ValueError, match=r'importance scores.*kernel="subnet"'):
        saving.import_pytorch_weights(path, plain)
    for a, b in zip(before, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # A compact checkpoint, of masked kernels and no scores, keeps its connections in every form.
    masked = {}
    for key, value in state.items():
        if "popup_scores" not in key:
            scores = state.get(key.replace(".weight", ".popup_scores"))
            masked[key] = value if scores is None or not key.endswith("weight") else kept(value, scores, 0.1)
    write(masked)
    for kernel in ("plain", "rewiring", "masked") if suffix == "npz" else ("masked",):
        arguments = {"connectivity": 0.1} if kernel == "rewiring" else {}
        target = network_of("wrn28_2", seed=1, kernel=kernel, **arguments)
        saving.import_pytorch_weights(path, target)
        np.testing.assert_allclose(logits(target), logits(source), atol=1e-5)
        for a, b in zip(layers.kernel_layers(source), layers.kernel_layers(target), strict=True):
            np.testing.assert_array_equal(a.effective_kernel, b.effective_kernel)


def kept(weight, scores, k):
    dropped = np.argsort(np.abs(scores), axis=None, kind="stable")[: int((1 - k) * scores.size)]
    found = weight.copy()
    found.reshape(-1)[dropped] = 0
    return found


@pytest.mark.parametrize("values", [(0.0,), (0.5, -0.5), (0.0, 1.0, -1.0, 2.0)])
def test_equal_scores_stay_as_pytorch_keeps_them(values, tmp_path):
    source, target = (network_of("small_cnn", seed, "subnet", connectivity=0.3) for seed in range(2))
    state, generator = state_dict(source, (8, 8, 32)), np.random.default_rng(0)
    for key, value in state.items():
        if key.endswith("popup_scores"):
            state[key] = generator.choice(np.float32(values), value.shape)
    np.savez(tmp_path / "a.npz", **state)
    saving.import_pytorch_weights(tmp_path / "a.npz", target)
    for layer in layers.kernel_layers(source):  # what its code computes, in its order of memory
        (name,) = [
            key for key, value in state.items() if key.endswith("weight") and value.size == layer.kernel.numpy().size
        ]
        expected = kept(state[name], state[name.replace("weight", "popup_scores")], 0.3)
        found = np.asarray(target.get_layer(layer.name).effective_kernel)
        assert np.count_nonzero(found) == np.count_nonzero(expected)
        if expected.ndim == 4:
            np.testing.assert_array_equal(np.einsum("hwio->oihw", found), expected)


def test_modules_that_are_never_used_are_left_out(tmp_path):
    source, target = network_of("wrn28_2"), network_of("wrn28_2", seed=1)
    state = state_dict(source)
    state |= {key.replace("block1.", "sub_block1."): value for key, value in state.items() if key.startswith("block1.")}
    np.savez(tmp_path / "a.npz", **state)
    saving.import_pytorch_weights(tmp_path / "a.npz", target)
    assert_same(source, target)


def test_what_does_not_fit_is_named_and_nothing_is_assigned(tmp_path):
    network = network_of("wrn28_2")
    before = network.get_weights()
    state = state_dict(network_of("wrn28_2", seed=1))
    path = tmp_path / "a.npz"

    def refused(entries, message, written=None):
        np.savez(path, **entries)
        with pytest.raises(ValueError, match=message):
            saving.import_pytorch_weights(written or path, network)
        for a, b in zip(before, network.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    refused(state, "There is no file", tmp_path / "none.npz")
    refused({}, "holds no state dict")
    without = {key: value for key, value in state.items() if not key.startswith("block2.layer.1.conv2")}
    refused(without, r"no module block2.layer.1.conv2 for group2_block2_conv2")
    refused(state | {"extra.weight": np.zeros(3)}, "has no layer for extra")
    refused(state | {"fc.weight": np.zeros((9, 128))}, r"fc has kernel of shape \(128, 9\), classifier of \(128, 7\)")
    refused(state | {"fc.weight": np.full((7, 128), np.nan)}, "infinities or NaN")
    refused({key: value for key, value in state.items() if key != "fc.bias"}, "only classifier has a bias")
    refused({key: value for key, value in state.items() if key != "bn1.running_var"}, "bn1.running_var is missing")
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        saving.import_pytorch_weights(path, network)
    wide = network_of("small_cnn")
    np.savez(path, **state_dict(network_of("large_cnn")))
    with pytest.raises(ValueError, match="has 4 convolutions, small_cnn has 2"):
        saving.import_pytorch_weights(path, wide)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "wrn28_2", "resnet18_imagenet", "large_cnn"])
def test_logits_are_those_of_pytorch(name, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.saving import pytorch_networks

    torch.manual_seed(0)
    theirs = pytorch_networks.NETWORKS[name](num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "best_prec1": np.float64(0.5), "state_dict": theirs.state_dict()}, path)
    ours = network_of(name)
    saving.import_pytorch_weights(path, ours)
    x = images()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours(x, training=False), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_pytorch_file_runs_nothing(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of weights alone"):
        saving.import_pytorch_weights(tmp_path / "a.pth", network_of("wrn28_2"))


def test_plain_residual_network_by_the_numbers_of_hydra(tmp_path):
    """There a block is `Dense`, ReLU, `Dense`, ReLU; the second `Dense` holds the shortcut before the convolution."""
    network = network_of("plain_resnet", input_shape=(8, 8, 3))
    names = ["0"]
    for number in range(1, 1 + 4 * (6 + 5 + 5), 4):
        names += [f"{number + 1}.Ws.0", f"{number + 3}.Ws.0", f"{number + 3}.Ws.2"]
    names += [f"{number + 6}", f"{number + 8}"]
    blocks = [(group, number) for group, count in ((1, 6), (2, 5), (3, 5)) for number in range(1, count + 1)]
    ours = [f"group{group}_block{number}_{part}" for group, number in blocks for part in ("conv1", "shortcut", "conv2")]
    state = {}
    for name, layer in zip(names, map(network.get_layer, ["conv1", *ours, "dense", "classifier"]), strict=True):
        kernel = layer.kernel.numpy()
        if layer.name == "dense":
            kernel = kernel.reshape(2, 2, 64, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        state[f"{name}.weight"] = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
        state[f"{name}.bias"] = layer.bias.numpy()
    np.savez(tmp_path / "resnet.npz", **state)
    copy = models.build("plain_resnet", num_classes=7, input_shape=(8, 8, 3), padding_mode="symmetric", seed=5)
    saving.import_pytorch_weights(tmp_path / "resnet.npz", copy)
    for mine, theirs in zip(network.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
