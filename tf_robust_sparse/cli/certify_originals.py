"""The command lines of HYDRA's `eval_smoothing.py`, in the words of run_certify.py; tables are of hydra_originals."""

from pathlib import Path

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import devices, hydra_directories, hydra_originals
from tf_robust_sparse.cli.command_line import BadFlag, about, define_aliases, define_number, section

FLAGS = flags.FLAGS

_WITHOUT_EFFECT = {
    "print_freq": hydra_originals.WITHOUT_EFFECT["print_freq"][0],
    "test_batch_size": hydra_originals.WITHOUT_EFFECT["test_batch_size"][0],
    "data_fraction": "Part of the training images",
}


@section("As HYDRA says it")
def define() -> None:
    """Defines the names and the other spellings."""
    flags.DEFINE_enum("dataset", None, [*hydra_originals.DATA, *trs.data.DATASETS], "--data, or HYDRA's name of it.")
    flags.DEFINE_enum(
        "arch", "vgg16_bn", [*hydra_originals.NETWORKS, *trs.models.NETWORKS], "Of a PyTorch checkpoint: its network."
    )
    flags.DEFINE_enum(
        "layer_type", "dense", ["dense", "subnet"], "Of a PyTorch checkpoint: subnet where it has scores."
    )
    define_number("k", None, "Of a PyTorch checkpoint with scores: the fraction that they keep.", 0, 1, excluded=0)
    flags.DEFINE_string("gpu", None, "Number of the GPU to use.")
    flags.DEFINE_bool("normalize", False, "Not taken, because networks and noise are in pixels of [0, 1].")
    for name, what in _WITHOUT_EFFECT.items():
        flags.DEFINE_string(name, None, f"{what}; without effect.")
    define_aliases({"num_classes": "n_classes", "base_classifier": "saved_model_or_network"})


def translate() -> None:
    """Sets our flags by those of HYDRA, before any check.

    Raises:
        BadFlag: if a value cannot be meant.
    """
    if FLAGS.normalize:
        raise BadFlag("--normalize: expected no such flag, because networks and noise are in pixels of [0, 1]")
    if FLAGS.dataset is not None:
        data = hydra_originals.DATA.get(FLAGS.dataset, FLAGS.dataset)
        if FLAGS["data"].present and FLAGS.data != data:
            raise BadFlag(f"--dataset={FLAGS.dataset} and --data={FLAGS.data} say the same; pass one. Received: both")
        FLAGS.data = data
    if FLAGS.max_examples is not None and FLAGS.max_examples < 1:
        if FLAGS.max_examples == 0:
            raise BadFlag("--max_examples=0: expected at least 1, or -1 for all images")
        FLAGS.max_examples = None
    elif FLAGS["max"].present:  # the place of an image there, and not how many of them
        FLAGS.max_examples = -(-FLAGS.max_examples // FLAGS.skip)
    if FLAGS.layer_type == "subnet" and FLAGS.k is None:
        raise BadFlag("--layer_type=subnet: expected --k=FRACTION with it, the part that the scores keep, such as 0.1")
    devices.choose("gpu", quiet=True)


def network_path(path: Path) -> Path:
    """Returns the place of the network: of a run of ours where HYDRA's scripts name its `checkpoint.pth.tar`."""
    return hydra_directories.run_of(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a network is built from --arch and takes the weights of a PyTorch checkpoint."""
    return path.is_file() and path.suffix in trs.saving.PYTORCH_SUFFIXES


def load(path: Path, images: trs.data.ImageDataset) -> keras.Model:
    """Returns the network of --arch with the weights of a PyTorch checkpoint, for the size and classes of the data."""
    with about("arch", "saved_model_or_network"):
        network = trs.models.build(
            hydra_originals.MODELS.get(FLAGS.arch, FLAGS.arch),
            num_classes=images.num_classes,
            input_shape=images.test_images.shape[1:],
            kernel="plain" if FLAGS.k is None else "subnet",
            padding_mode="symmetric",
        )
        if FLAGS.k is not None:
            trs.sparsity.set_keep_fractions(network, FLAGS.k)
        try:
            trs.saving.import_pytorch_weights(path, network)
        except ImportError as error:
            raise BadFlag(f"--saved_model_or_network={path}: {error}") from error
    return network
