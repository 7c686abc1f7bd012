"""Every command line that a page shows is one that the command takes, and does its work."""

import functools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.cli.binary_runs import EVALUATION, YAML
from tests.cli.conftest import TRAIN, run_script
from tests.cli.documented import LINES
from tests.cli.test_hydra_originals import CROWN_IBP
from tests.data import makers
from tests.data.test_image_files import make_imagenet
from tests.saving.test_binary_weights import checkpoint as binary_checkpoint
from tests.saving.test_pytorch_weights import state_dict
from tests.saving.test_reference_weights import published_list
from tf_robust_sparse.cli import settings
from tf_robust_sparse.data import catalog
from tf_robust_sparse.models import resnet, vgg, wide_resnet

HYDRA, BINARY, NEURAL, LOTTERY = (
    *("run_hydra", "run_binary_subnetworks", "run_neural_pruning", "run_lottery_tickets"),
)
BLOCKS = (0, 1, 1, 1)  # of residual networks: each with a shortcut
# Flags that leave a command its kind of work, and seconds of it.
_IMAGES = ("--train_examples=24", "--test_examples=8", "--validation_examples=8", "--batch_size=8")
_ATTACK = ("--num_steps=1", "--pgd_iters=1", "--pgd_restarts=1")
_FEW = ("--test_examples=8", "--pgd_iters=1", "--pgd_restarts=1")
TINY = {
    TRAIN: (*_IMAGES, *_ATTACK, "--epochs=1"),
    HYDRA: (*_IMAGES, *_ATTACK, "--epochs=2", "--prune_epochs=2"),
    BINARY: (*_IMAGES, *_ATTACK, "--epochs=1", "--val_num_steps=1", "--autoattack=apgd-ce"),
    NEURAL: (*_IMAGES, *_ATTACK, "--n_epochs=1", "--eval_steps=1"),
    LOTTERY: ("--trials=1", "--train_iters=4", "--prune_iters=1", "--eval_every=2", "--valid_size=8", "--batch_size=8"),
    "run_foolbox_eval": _FEW,
    "run_robustness_eval": ("--test_examples=4", "--pgd_iters=1", "--pgd_restarts=1"),
    "run_certify": ("--max_examples=2",),
    "run_verifier_export": ("--max_examples=2",),
    "run_export": ("--test_examples=20", "--calibration_images=4", "--latency_seconds=0.01"),
    "run_vulnerability_plots": ("--num_steps=1",),
    "run_sweep": ("--values=0.1", "--seeds=0"),
}
TINY["run_lottery_grid"] = ("--attacks=pgd", "--training=adversarial", f"--options={' '.join(TINY[LOTTERY])}")


def tiny(words, script):
    """A command line with flags that leave it its kind of work, and seconds of it."""
    yield from (f"{word} {' '.join(TINY[HYDRA])}" if word.startswith("--command=") else word for word in words)
    yield from TINY.get(script, ())
    if script == HYDRA and re.search("crown-ibp|schedule_length", " ".join(words)):
        yield "--schedule_length=0"
    if any("imagenet" in word for word in words) and script == BINARY:
        yield from ("--image_size=32", "--warmup_length=0")


# What a page takes for granted, and how it is made.
_RUN = (TRAIN, "--data=cifar10", "--data_dir=DIR", "--model=small_cnn")
_SAMPLE = (TRAIN, "--data=fashion_mnist_sample", "--model=small_cnn")
_PHASES = (HYDRA, "--flagfile=flags/hydra_sample_adv.flags", "--k=0.1")
MADE = {
    **dict.fromkeys(("RUN", "RUN/finetune", "PATH", "OTHER", "runs/compact", "DIR"), _RUN),
    **dict.fromkeys(("saved_models/run", "network.trs"), (*_SAMPLE, "--sparse_train", "--connectivity=0.1")),
    "runs/dense": (*_PHASES, "--exp_mode=pretrain"),
    "runs/pruned": (*_PHASES, "--exp_mode=prune", "--source_net=runs/dense"),
    "saved_models/quickstart_dense": (TRAIN, "--flagfile=flags/quickstart_dense.flags"),
    "saved_models/quickstart": (TRAIN, "--flagfile=flags/quickstart.flags"),
    "trained_models/one/pretrain/latest_exp": (HYDRA, *_RUN[1:3], "--model=vgg16", "--exp_mode=pretrain"),
    **dict.fromkeys(("runs/at", "runs/anp_vs"), (NEURAL, "--net=lenet_conv", "--data_dir=DIR")),
    "runs/fast": (BINARY, "--flagfile=flags/binary/sample.flags"),
}


NEEDED = {  # what a flagfile, or a list of networks, takes for granted too
    "flags/sample_obs.flags": "saved_models/quickstart_dense",
    "runs/anp_vs": "runs/at",
}
# Files that pages name, and the ones that stand for them here, where PyTorch need not be installed.
FILES = {"FILE": "best_weights.pickle", "checkpoint.pth.tar": "checkpoint.npz", "model_best.pth": "model_best.npz"}
_CONFIGS = {
    **dict.fromkeys(
        ("configs.yml", "configs/configs.yml"), re.sub("trainer: .*|optimizer: .*|lr: .*|layer_type: .*", "", CROWN_IBP)
    ),
    "resnet34-binary-weights.yaml": YAML,
    "aa-standard.yaml": EVALUATION,
}


def placed(words, data):
    """The words of a command line with a folder of data, and with files that are there."""
    for word in words:
        head, equals, value = word.rpartition("=")
        if head in ("--data_dir", "--data_dirs"):
            value = re.sub(r"\w+", str(data), value)
        yield head + equals + FILES.get(value, value)


@pytest.mark.parametrize("page", sorted({line.page for line in LINES}))
def test_commands_take_what_pages_show(page, parse, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in FILES.values():
        (tmp_path / name).touch()
    for line in (each for each in LINES if each.page == page):
        try:
            parse(line.script, *placed(line.words, tmp_path))
            settings.check()
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{line}: {error}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of small data sets in their official files."""
    folder = tmp_path_factory.mktemp("data")
    for classes in (10, 100):
        makers.write_files(folder / f"cifar{classes}", makers.cifar_files(classes, binary=False, per_file=48)[0])
    for name in ("mnist", "fashion_mnist"):
        makers.write_idx(folder / name, n=(48, 16))
    make_imagenet(folder / "imagenet100", classes=("n1", "n2"), train=12, val=4)
    for split in ("train", "val"):
        names = [f"{split}/{path.parent.name}/{path.name}" for path in (folder / "imagenet100" / split).rglob("*.JPEG")]
        lines = [f"{name} {int('n2' in name)}" for name in sorted(names)]
        (folder / "imagenet100" / f"{split}_100.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Networks have few blocks, or few channels: the way through a command is the same."""
    stages, wide = resnet._stages, wide_resnet.wide_resnet_logits
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resnet, "_stages", lambda build, x, block, _, widths: stages(build, x, block, BLOCKS, widths))
        patched.setattr(wide_resnet, "wide_resnet_logits", lambda build, *_: wide(build, 10, 1))
        patched.setitem(vgg.VGG_WIDTHS, 16, tuple((8,) * len(widths) for widths in vgg.VGG_WIDTHS[16]))
        yield


@pytest.fixture(scope="module")
def place_of(tmp_path_factory):
    """Returns a function from the block of a page to a folder where its commands run one after the other."""

    @functools.cache
    def of(page, block):
        place = tmp_path_factory.mktemp(re.sub(r"\W+", "_", page))
        (place / "configs/advprune/cifar10/resnet34").mkdir(parents=True)
        for name, text in _CONFIGS.items():
            (place / name).write_text(text)
            if name.endswith(".yaml"):
                (place / "configs/advprune/cifar10/resnet34" / name).write_text(text)
        return place

    return of


def make(name, data):
    """Makes what a page takes for granted, in the current directory."""
    if name == "best_weights.pickle":
        network = trs.models.build("vgg16", kernel="rewiring", connectivity=0.1)
        Path(name).write_bytes(pickle.dumps({"param_list": list(map(tf.Variable, published_list(network)))}))
    elif name == "checkpoint.npz":
        np.savez(name, **state_dict(trs.models.build("wrn28_4", kernel="subnet", padding_mode="symmetric")))
    elif name == "model_best.npz":
        np.savez(name, **binary_checkpoint(BLOCKS, widths=resnet._WIDTHS))
    if name in FILES.values():
        return
    script, *words = MADE[name]
    make_all(words, data)
    run_script(script, *tiny(list(placed(words, data)), script), f"--output_dir={name}").expect()


def make_all(words, data):
    """Makes what a command line names and what is not there."""
    for word in words:
        flag, _, value = word.rpartition("=")
        for name in (*MADE, *FILES.values()):
            is_read = flag not in ("--output_dir", "--data_dir") and (
                re.fullmatch(rf"(\./)?{name}(/serve|/checkpoint/.*)?", value) or NEEDED.get(value) == name
            )
            if is_read and not Path(name).exists():
                make(name, data)


RUN = [line for line in LINES if line.script != "run_unpack_imagenet"]  # which test_unpack_imagenet.py runs


@pytest.mark.documented_commands
@pytest.mark.parametrize("line", RUN, ids=lambda line: f"{line.page}-{line.block}-{LINES.index(line)}")
def test_commands_do_their_work(line, data, place_of, monkeypatch):
    places = {path.name: (path,) for path in data.iterdir()}
    monkeypatch.setattr(catalog, "_SYSTEM_FOLDERS", places)  # where data are looked for without --data_dir
    monkeypatch.chdir(place_of(line.page, line.block))
    words = list(placed(line.words, data))
    make_all(words, data)
    done = run_script(line.script, *tiny(words, line.script))
    assert done.code == 0, f"{line}\n{done.out}\n{done.err}"
