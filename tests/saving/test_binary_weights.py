"""Checkpoints of binary sub-networks as their authors publish them give the logits that PyTorch gives."""

import numpy as np
import pytest

from tf_robust_sparse import layers, models, saving, sparsity

# Another library adds up in another order; times the largest logit.
TOLERANCE = 1e-4
WIDTHS, RATE, EXPONENT = (6, 13, 26, 51), 0.3, 0.1
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# What PyTorch 2.13 says of `pixels()` with `checkpoint()`; `test_pytorch_says_so` compares where torch is installed.
LOGITS = np.float32(
    [
        [14.30755, -1.80411, -3.86388, -1.1057, 19.68894, -12.63941, 9.29556, 0.90521, 18.46698, 13.63414],
        [13.38957, -1.41938, -2.61417, 1.3101, 19.93121, -12.03691, 11.85095, -3.00728, 19.30584, 13.5951],
    ]
)


def checkpoint(blocks=(2, 2, 2, 2), prefix="module.1.", last=True, widths=WIDTHS):
    """The state dict of ResNet18_001_p1, or of one of other widths and blocks, of numbers drawn here."""
    random = np.random.default_rng(7)
    state = {}

    def conv(name, filters, channels, size):
        shape = (filters, channels, size, size)
        state[f"{prefix}{name}.weight"] = np.where(random.random(shape) < 0.5, -1, 1).astype("float32")
        state[f"{prefix}{name}.scores"] = random.uniform(-0.01, 0.01, shape).astype("float32")

    def norm(name, size):
        state[f"{prefix}{name}.running_mean"] = random.normal(0, 3, size).astype("float32")
        state[f"{prefix}{name}.running_var"] = random.uniform(20, 60, size).astype("float32")
        state[f"{prefix}{name}.num_batches_tracked"] = np.array(5)

    conv("conv1", widths[0], 3, 3)
    norm("bn1", widths[0])
    channels = widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", width, channels, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if channels != width:
                conv(f"{name}.shortcut.0", width, channels, 1)
                norm(f"{name}.shortcut.1", width)
            channels = width
    conv("fc", 10, channels, 1)
    if last:
        norm("last", 10)
    return state


def pixels():
    return np.random.default_rng(3).random((2, 32, 32, 3), "float32")


def network_of(kernel="signed", padding_mode="symmetric", last=True):
    variant = models.Variant("cifar10", affine_batch_norm=False, classifier_bias=False, final_batch_norm=last)
    network = models.build("resnet18_p1", kernel=kernel, padding_mode=padding_mode, seed=0, variant=variant)
    if kernel in ("signed", "subnet"):
        sparsity.set_keep_fractions(network, sparsity.keep_fractions(network, RATE, "adaptive", EXPONENT))
    return network


def imported(tmp_path, network, **arguments):
    np.savez(tmp_path / "a.npz", **checkpoint(**arguments))
    saving.import_pytorch_weights(tmp_path / "a.npz", network)
    return network


def mask_of(scores, fraction):
    order = np.argsort(np.abs(scores), axis=None, kind="stable")
    mask = np.ones(scores.size, bool)
    mask[order[: int((1 - fraction) * scores.size)]] = False
    return mask.reshape(scores.shape)


def pytorch_logits(fractions):
    """The forward pass written with PyTorch's functions; `fractions` by module."""
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    state = checkpoint(prefix="")

    def conv(x, name, stride=1):
        kernel = state[f"{name}.weight"] * mask_of(state[f"{name}.scores"], fractions[name])
        return F.conv2d(x, torch.tensor(kernel), stride=stride, padding=(kernel.shape[-1] - 1) // 2)

    def norm(x, name):
        mean, variance = (torch.tensor(state[f"{name}.running_{what}"]) for what in ("mean", "var"))
        return F.batch_norm(x, mean, variance, training=False, eps=1e-5)

    x = torch.tensor(pixels()).permute(0, 3, 1, 2)
    x = (x - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(DEVIATION).reshape(1, 3, 1, 1)
    x = F.relu(norm(conv(x, "conv1"), "bn1"))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
            if f"{name}.shortcut.0.weight" in state:
                x = norm(conv(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1")
            x = F.relu(y + x)
    return norm(conv(F.avg_pool2d(x, 4), "fc"), "last").flatten(1).numpy()


def module_of(name):
    known = {"stem": "conv1", "classifier": "fc"}
    if name in known:
        return known[name]
    stage, block, part = name.removeprefix("stage").split("_")
    part = "shortcut.0" if part == "shortcut" else part
    return f"layer{stage}.{int(block.removeprefix('block')) - 1}.{part}"


@pytest.mark.parametrize("kernel", [pytest.param("signed", marks=pytest.mark.full), "subnet"])
def test_logits_are_the_recorded_ones(kernel, tmp_path):
    network = imported(tmp_path, network_of(kernel))
    found = np.asarray(network(pixels(), training=False))
    np.testing.assert_allclose(found, LOGITS, atol=TOLERANCE * np.abs(LOGITS).max())
    other = imported(tmp_path, network_of(kernel, padding_mode="tf_same"))
    assert np.abs(np.asarray(other(pixels(), training=False)) - LOGITS).max() > 1


def test_pytorch_says_so(tmp_path):
    network = imported(tmp_path, network_of())
    fractions = {module_of(layer.name): layer.keep_fraction for layer in layers.kernel_layers(network)}
    np.testing.assert_allclose(pytorch_logits(fractions), LOGITS, atol=TOLERANCE * np.abs(LOGITS).max())


def test_masks_are_those_of_the_scores(tmp_path):
    network, state = imported(tmp_path, network_of()), checkpoint(prefix="")
    for layer in layers.kernel_layers(network):
        scores = state[f"{module_of(layer.name)}.scores"]
        mask = mask_of(scores, layer.keep_fraction)
        kernel = (state[f"{module_of(layer.name)}.weight"] * mask).transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(np.asarray(layer.effective_kernel).reshape(kernel.shape), kernel)


def test_what_does_not_fit_is_told(tmp_path):
    np.savez(tmp_path / "a.npz", **checkpoint())
    with pytest.raises(ValueError, match="has no layer for last"):
        saving.import_pytorch_weights(tmp_path / "a.npz", network_of(last=False))
    np.savez(tmp_path / "b.npz", **checkpoint(last=False))
    with pytest.raises(ValueError, match="has no module last for classifier_bn"):
        saving.import_pytorch_weights(tmp_path / "b.npz", network_of())
    affine = models.build(
        "resnet18_p1",
        kernel="subnet",
        padding_mode="symmetric",
        variant=models.Variant("cifar10", classifier_bias=False, final_batch_norm=True),
    )
    with pytest.raises(ValueError, match=r"bn1\.weight is missing"):
        saving.import_pytorch_weights(tmp_path / "a.npz", affine)
    state = checkpoint()
    state["module.1.conv1.weight"][0, 0, 0, 0] = 0.5
    np.savez(tmp_path / "c.npz", **state)
    network = network_of()
    before = network.get_weights()
    with pytest.raises(ValueError, match=r"The kernel of stem has a single magnitude.*has 2.*subnet"):
        saving.import_pytorch_weights(tmp_path / "c.npz", network)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_plain_network_of_a_checkpoint_has_its_logits(tmp_path):
    network = imported(tmp_path, network_of())
    plain = saving.strip(network)
    np.testing.assert_allclose(plain(pixels()), network(pixels(), training=False), atol=1e-6)
    kept = sum(layer.kept for layer in layers.kernel_layers(network))
    assert sum(np.count_nonzero(layer.kernel) for layer in plain.layers if hasattr(layer, "kernel")) == kept
