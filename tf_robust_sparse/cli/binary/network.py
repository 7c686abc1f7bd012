"""Random networks and the sub-networks that are found in them: their settings, and the networks these stand for."""

import dataclasses
import functools
import math
from typing import Any

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.data import Data, TrainingImages
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.cli.settings import Settings, like, only_with, setting
from tf_robust_sparse.layers.normalization import use_unbiased_variance
from tf_robust_sparse.models.kernel_initialization import KERNEL_INITIALIZATIONS, initialize_kernels
from tf_robust_sparse.models.network_builder import NORMALIZATIONS
from tf_robust_sparse.sparsity.scores import FAN_SCALED, FANS, scored_layers
from tf_robust_sparse.training.by_epoch import gradual_rates

KERNELS = {"SubnetConv": "subnet", "FixedSubnetConv": "subnet", "DenseConv": "plain", "BinConv": "binary"}
BATCH_NORMS = ("NonAffineBatchNorm", "LearnedBatchNorm")
LOTTERY = ("adv_step_lottery_finetune", "adv_step_lottery_retrain")
FAST = "adv_step_fast"
TRAINERS = ("adv_step", "adv_trades", FAST, *LOTTERY)
RESIDUAL = tuple(name for name in trs.models.NETWORKS if name.startswith("resnet"))
_SIGNS = ("binary", "lottery_binary")
_TRAINED_SIGNS = only_with("conv_type", "BinConv", refuse=True)


trained_by = functools.partial(only_with, "trainer")  # the rule of a setting of some trainers


@dataclasses.dataclass
class Trainer(Settings):
    """What is trained, and from where."""

    title = "Training"

    trainer: str = setting(
        "adv_step", "Way of training; default means adv_step.", choices=("default", *TRAINERS), identity=True
    )
    freeze_weights: bool = setting(True, "Train only the scores; the lottery trainers train weights.", identity=True)
    pretrained: str | None = setting(
        None, "Directory of a run, .keras, .trs or PyTorch checkpoint to begin with, or to evaluate."
    )

    def check(self) -> None:
        """Checks that the trainer has what it trains."""
        network, run = Network.read(), Run.read()
        if self.is_lottery and not (self.pretrained or run.resume or run.load_model):
            raise BadFlag(f"--trainer={self.trainer} trains what another run found; pass --pretrained=DIR of that run")
        if self.is_lottery and network.kernel() != "subnet":
            raise BadFlag(
                f"--trainer={self.trainer} trains a sub-network; pass --conv_type=SubnetConv instead of "
                f"--conv_type={network.conv_type}"
            )
        fixed = "FixedSubnetConv" in (network.layer_type("stem"), network.layer_type("classifier"), network.conv_type)
        if not (self.freeze_weights or self.is_lottery or fixed) and network.is_subnet:
            raise BadFlag(
                f"--nofreeze_weights does not go with --trainer={self.trainer}; pass --trainer={' or '.join(LOTTERY)}, "
                "or --conv_type=FixedSubnetConv"
            )

    @property
    def is_lottery(self) -> bool:
        """Whether the weights of a sub-network that is found already are trained."""
        return self.trainer in LOTTERY


@dataclasses.dataclass
class Network(method.Network):
    """A residual network, and the kernels of its layers."""

    title = "Network"

    model: str = like(
        method.Network,
        "model",
        default="resnet34",
        help="Architecture; those called p... are the small dense ones.",
        choices=RESIDUAL,
    )
    padding_mode: str = like(method.Network, "padding_mode", default="symmetric")
    normalize: str | None = setting(
        None,
        "Mean and deviation that pixels are normalized by.",
        choices=(*NORMALIZATIONS, "none"),
        identity=True,
    )
    conv_type: str = setting(
        "SubnetConv", "Kernels: chosen by scores, dense, or trained signs.", choices=KERNELS, identity=True
    )
    bn_type: str | None = setting(
        None, "Batch norm; by default without scale and shift for SubnetConv.", choices=BATCH_NORMS, identity=True
    )
    first_layer_type: str | None = setting(None, "Kernel of the stem, if another.", choices=KERNELS, identity=True)
    last_layer_type: str | None = setting(None, "Kernel of the classifier, if another.", choices=KERNELS, identity=True)
    first_layer_dense: bool = setting(False, "Short for --first_layer_type=DenseConv.")
    last_layer_dense: bool = setting(False, "Short for --last_layer_type=DenseConv.")
    end_with_bn: bool = setting(False, "Batch norm after the classifier; networks of signs need it.", identity=True)
    nonlinearity: str = setting("relu", "Activation of basic blocks.", choices=("relu", "leaky_relu"))
    leaky_relu_slope: float = setting(0.0, "Slope of leaky_relu below 0.", upper=1, excluded=1, identity=True)
    init: str = setting(
        "kaiming_normal",
        "How kernels are drawn; binary is 1 and -1.",
        choices=KERNEL_INITIALIZATIONS,
        identity=True,
    )

    def check(self) -> None:
        """Checks that the first and the last layer are said once."""
        for which in ("first", "last"):
            kind = getattr(self, f"{which}_layer_type")
            if getattr(self, f"{which}_layer_dense") and kind not in (None, "DenseConv"):
                raise BadFlag(
                    f"--{which}_layer_type={kind} and --{which}_layer_dense say different things; drop one of them"
                )

    @property
    def is_subnet(self) -> bool:
        """Whether kernels are chosen by scores."""
        return KERNELS[self.conv_type] == "subnet"

    @property
    def slope(self) -> float:
        """Slope of the activations below 0."""
        return self.leaky_relu_slope if self.nonlinearity == "leaky_relu" else 0.0

    def layer_type(self, name: str) -> str:
        """Returns the kind of kernel of a layer, `"stem"`, `"classifier"` or another one, as --conv_type says it."""
        which = {"stem": "first", "classifier": "last"}.get(name)
        if which is None:
            return self.conv_type
        if getattr(self, f"{which}_layer_dense"):
            return "DenseConv"
        return getattr(self, f"{which}_layer_type") or self.conv_type

    def kernel(self, layer: str = "") -> str:
        """Returns the parametrization of a layer's kernel; without a name, of most layers."""
        kind = self.layer_type(layer)
        if kind == "SubnetConv" and self.init in _SIGNS and not Trainer.read().is_lottery:
            return "signed"
        return KERNELS[kind]

    def variant(self) -> trs.models.Variant:
        """Returns how the network differs from the usual one."""
        batch_norm = self.bn_type or ("NonAffineBatchNorm" if self.is_subnet else "LearnedBatchNorm")
        drawing = Drawing.read()
        return trs.models.Variant(
            normalization=None if self.normalize == "none" else self.normalize,
            affine_batch_norm=batch_norm == "LearnedBatchNorm",
            classifier_bias=False,
            final_batch_norm=self.end_with_bn,
            leaky_relu_slope=self.slope,
            first_kernel=self.kernel("stem"),
            last_kernel=self.kernel("classifier"),
            stochastic=drawing.binconv_stochastic or drawing.binconv_freeze_rand,
        )


@dataclasses.dataclass
class Drawing(Settings):
    """How kernels and scores are drawn."""

    title = "Network"

    mode: str = setting("fan_in", "Which fan scales kernels and scores.", choices=FANS, identity=True)
    scale_fan: bool = setting(
        False, "Multiply the fan of kernels by --prune_rate; see the documentation.", identity=True
    )
    binconv_stochastic: bool = setting(
        False, "BinConv: draw the signs in each step again.", identity=True, only_for=_TRAINED_SIGNS
    )
    binconv_freeze_rand: bool = setting(
        False, "BinConv: keep the signs drawn first.", identity=True, only_for=_TRAINED_SIGNS
    )
    score_init_scale: float = setting(1.0, "Largest absolute score at the start.", excluded=0, identity=True)
    fan_scaled_score_mode: str = setting(
        "all", "Layers whose scores are divided by the root of the fan.", choices=FAN_SCALED, identity=True
    )


@dataclasses.dataclass
class Pruning(Settings):
    """How many weights stay."""

    title = "Pruning"

    prune_rate: float = setting(
        0.01,
        "Fraction of all weights that stays.",
        upper=1,
        excluded=0,
        aliases=("connectivity", "k", "pc"),
        identity=True,
    )
    pr_scale: float = setting(
        1.0,
        "Exponent p: a layer of n weights keeps in proportion to n**p; 1 is uniform.",
        upper=1,
        identity=True,
    )
    pr_steps: int = setting(
        1, "Stages, each keeping prune_rate**(1/pr_steps) of the one before.", lower=1, identity=True
    )
    warmup_length: int = setting(
        0, "Epochs in which the learning rate rises, of all epochs; stages begin after them.", identity=True
    )

    def check(self) -> None:
        """Checks that there are masks to find, and epochs to find them in."""
        trainer, network, epochs = Trainer.read(), Network.read(), TrainingImages.read().epochs
        if self.pr_steps > 1 and trainer.is_lottery:
            raise BadFlag(
                f"--pr_steps={self.pr_steps}: expected 1 with --trainer={trainer.trainer}, because the mask is found "
                "already"
            )
        if self.pr_steps > 1 and not network.is_subnet:
            raise BadFlag(
                f"--pr_steps={self.pr_steps} needs --conv_type=SubnetConv; with --conv_type={network.conv_type} leave "
                "it out"
            )
        if self.warmup_length >= epochs:
            raise BadFlag(f"--warmup_length={self.warmup_length}: expected fewer than --epochs={epochs}")
        if self.pr_steps > epochs - self.warmup_length:
            raise BadFlag(
                f"--pr_steps={self.pr_steps}: expected at most {epochs - self.warmup_length}, the epochs after the "
                "warm-up"
            )

    def rates(self) -> list[float]:
        """Returns the fraction that stays in each epoch."""
        return gradual_rates(self.prune_rate, TrainingImages.read().epochs, self.pr_steps, self.warmup_length)

    def fractions(self, network: keras.Model, rate: float | None = None) -> dict[str, float]:
        """Returns the fraction of each layer; by default those of the end."""
        with about("prune_rate", "pr_scale"):
            return trs.sparsity.keep_fractions(
                network, self.prune_rate if rate is None else rate, "adaptive", self.pr_scale
            )


# What says which network it is.
OF_NETWORK = (*(field.name for field in dataclasses.fields(Network)), "prune_rate", "pr_scale")


def describe(network: keras.Model) -> dict[str, Any]:
    """Returns the entries of `results.json` that say what the network is."""
    of_network, pruning = Network.read(), Pruning.read()
    return {
        "trainer": Trainer.read().trainer,
        "conv_type": of_network.conv_type,
        "init": of_network.init,
        "prune_rate": pruning.prune_rate,
        "pr_scale": pruning.pr_scale,
        "end_with_bn": of_network.end_with_bn,
        "score_init_scale": Drawing.read().score_init_scale,
        "keep_fractions": {each.name: each.keep_fraction for each in scored_layers(network)},
    }


def built(images: trs.data.ImageDataset, synchronized: bool = False, kernel: str | None = None) -> keras.Model:
    """Builds the network with kernels and scores as they are drawn, and its fractions."""
    settings, drawing, pruning, seed = Network.read(), Drawing.read(), Pruning.read(), Data.read().seed
    network = settings.build(images, kernel or settings.kernel(), seed, synchronized, variant=settings.variant())
    use_unbiased_variance(network)
    scaled_by = pruning.prune_rate if drawing.scale_fan and settings.is_subnet else None
    with about("init", "prune_rate"):
        initialize_kernels(
            network, settings.init, seed, drawing.mode, scaled_by, math.sqrt(2 / (1 + settings.slope**2))
        )
    if scored_layers(network):
        trs.sparsity.uniform_scores(
            network, drawing.score_init_scale, drawing.fan_scaled_score_mode, drawing.mode, seed
        )
        rate = None if Run.read().load_model else pruning.rates()[0]
        trs.sparsity.set_keep_fractions(network, pruning.fractions(network, rate))
    return network
