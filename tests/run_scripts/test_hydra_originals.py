"""Command lines as HYDRA's published code takes them."""

import numpy as np
import pytest

import tf_robust_sparse as trs
from run_scripts import hydra_originals
from run_scripts.command_line import BadFlag
from tests.run_scripts.conftest import run_script
from tests.run_scripts.test_hydra import FEW, HYDRA
from tests.saving.test_pytorch_weights import state_dict


def test_names_of_the_original(parse):
    flags = parse(
        *(
            HYDRA,
            "--arch",
            "vgg16_bn",
            "--dataset",
            "CIFAR10",
            "--exp-mode",
            "prune",
            "--k",
            "0.01",
            "--distance",
            "l_2",
        ),
        *("--scaled-score-init", "--source-net", "x", "--trainer", "adv", "--val-method", "adv", "--save-dense"),
        *("--result-dir", "trained", "--exp-name", "one", "--num-classes", "10", "--data-fraction", "0.5"),
    )
    hydra_originals.translate()
    assert (flags.model, flags.data, flags.norm, flags.k) == ("vgg16", "cifar10", "l2", 0.01)
    assert (flags.output_dir, flags.n_classes, flags.save_dense) == ("trained/one", 10, True)
    assert flags.select == "best_robust"
    for arch, model in hydra_originals.MODELS.items():
        flags = parse(HYDRA, f"--arch={arch}")
        hydra_originals.translate()
        assert flags.model == model in trs.models.NETWORKS
    flags = parse(HYDRA, "--val_method=base")
    hydra_originals.translate()
    assert flags.select == "best_clean"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch=vgg16_bn", "--model=resnet18"], "--arch=vgg16_bn and --model=resnet18"),
        (["--dataset=SVHN", "--data=cifar10"], "--dataset=SVHN and --data=cifar10"),
        (["--result_dir=x"], "go together"),
        (["--result_dir=x", "--exp_name=y", "--output_dir=z"], "both say where"),
        (["--is_semisup"], "--pseudo_labels=FILE"),
        (["--semisup_fraction=0.5"], "--pseudo_labels=FILE"),
        (["--data_fraction=0.5", "--train_examples=9"], "both say how many"),
        (["--val_method=base", "--select=best_robust"], "--select=best_clean"),
    ],
)
def test_what_does_not_go_together(words, message, parse):
    parse(HYDRA, *words)
    with pytest.raises(BadFlag, match=message):
        hydra_originals.translate()


def test_a_checkpoint_of_pytorch_is_a_source(tmp_path):
    source = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="subnet", padding_mode="symmetric", seed=4)
    np.savez(tmp_path / "checkpoint.npz", **state_dict(source, (7, 7, 32)))
    done = run_script(
        *(HYDRA, *[word for word in FEW if not word.startswith("--train_examples")], "--exp-mode=prune", "--k=0.2"),
        *("--epochs=1", f"--source-net={tmp_path / 'checkpoint.npz'}", "--scaled-score-init", "--val-method=base"),
        *("--save-dense", "--data-fraction=0.032", f"--result-dir={tmp_path}", "--exp-name=run"),
    ).expect()
    assert "231 images to train on, 25 to select by" in done.out
    network = trs.load_network(tmp_path / "run")
    for layer, other in zip(trs.layers.kernel_layers(network), trs.layers.kernel_layers(source), strict=True):
        np.testing.assert_array_equal(layer.kernel, other.kernel)
    dense = trs.load_network(tmp_path / "run/dense")
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    np.testing.assert_allclose(dense(x), network(x), atol=1e-6)
    assert not any("tf_robust_sparse" in type(layer).__module__ for layer in dense.layers)
