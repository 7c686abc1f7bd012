"""The command lines of HYDRA's `eval_smoothing.py`, in the words of run_certify.py; tables are of `originals`."""

import dataclasses

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, devices, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.hydra import originals
from tf_robust_sparse.cli.settings import Settings, like, setting

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Checkpoint(Settings):
    """What HYDRA's code says of a checkpoint, and calls otherwise."""

    title = originals.Names.title

    dataset: str | None = like(originals.Names, "dataset")
    arch: str = setting(
        "vgg16_bn", "For a PyTorch checkpoint: its network.", choices=(*originals.NETWORKS, *trs.models.NETWORKS)
    )
    layer_type: str = setting(
        "dense", "For a PyTorch checkpoint: subnet if it has scores.", choices=("dense", "subnet")
    )
    k: float | None = setting(
        None, "For a PyTorch checkpoint with scores: the fraction that they keep.", upper=1, excluded=0
    )
    gpu: str | None = setting(None, "Number of the GPU to use.")
    normalize: bool = like(originals.Names, "normalize")

    def check(self) -> None:
        """Checks that scores come with what they keep."""
        if self.normalize:
            raise BadFlag("--normalize is not taken, because networks and noise are in pixels of [0, 1]; drop it")
        if self.layer_type == "subnet" and self.k is None:
            raise BadFlag("--layer_type=subnet needs --k=FRACTION, the part that the scores keep, such as --k=0.1")

    def build(self, images: trs.data.ImageDataset) -> keras.Model:
        """Builds the network for the size and classes of the data."""
        network = trs.models.build(
            originals.WORDS["arch"].get(self.arch, self.arch),
            num_classes=images.num_classes,
            input_shape=images.test_images.shape[1:],
            kernel="plain" if self.k is None else "subnet",
            padding_mode="symmetric",
        )
        if self.k is not None:
            trs.sparsity.set_keep_fractions(network, self.k)
        return network


_IGNORED = ("print_freq", "test_batch_size")
_Ignored = settings.ignored(
    Checkpoint.title,
    {**{name: originals.IGNORED[name] for name in _IGNORED}, "data_fraction": "Part of the training images"},
)


def define() -> None:
    """Defines the names and the other spellings."""
    Checkpoint.define()
    _Ignored.define()
    with command_line.section(Checkpoint.title):
        command_line.define_aliases({"num_classes": "n_classes", "base_classifier": "saved_model_or_network"})


def translate() -> None:
    """Sets our flags by those of HYDRA, before any check.

    Raises:
        BadFlag: if a value cannot be meant.
    """
    originals.take_over("dataset", "data", originals.DATA)
    if FLAGS.max_examples == 0:
        raise BadFlag("--max_examples=0: expected at least 1, or -1 for all images")
    if FLAGS.max_examples == -1:
        FLAGS.max_examples = None
    elif FLAGS["max"].present:  # the place of an image there, and not how many of them
        FLAGS.max_examples = -(-FLAGS.max_examples // FLAGS.skip)
    devices.choose("gpu", quiet=True)
