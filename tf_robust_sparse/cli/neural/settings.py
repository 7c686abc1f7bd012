"""Neural pruning: its settings, and the networks, attacks, objectives and optimizers they stand for."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections import attacks, data, machines
from tf_robust_sparse.cli.sections.data import Data, TrainingImages
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.cli.settings import OnlyFor, Settings, like, only_with, setting
from tf_robust_sparse.evaluation.figure_style import check_matplotlib
from tf_robust_sparse.models.vgg import INPUT_NORMS
from tf_robust_sparse.objectives.vulnerability_suppression import VULNERABILITIES
from tf_robust_sparse.training.optimizers import CoupledAdam

FLAGS = flags.FLAGS


class Kind(NamedTuple):
    """A network: what builds it, the parametrization of its kernels, and how it is trained.

    Attributes:
        builder: Its name in `models.NETWORKS`.
        kernel: `"plain"` or `"bayesian"`.
        drops: After which shares of all steps the learning rate falls tenfold.
        features: Layers whose outputs count for the vulnerability; `None` for all that end in a ReLU.
    """

    builder: str
    kernel: str
    drops: tuple[float, float]
    features: tuple[str, ...] | None = None

    @property
    def is_lenet(self) -> bool:
        """Whether it is a LeNet, for digits and without batch norm."""
        return self.builder.startswith("lenet")

    @property
    def is_vgg(self) -> bool:
        """Whether it is a VGG, which normalizes pixels."""
        return self.builder.startswith("vgg")

    @property
    def is_residual(self) -> bool:
        """Whether it is a residual network, which has no published numbers."""
        return self.builder.startswith("resnet")

    @property
    def is_bayesian(self) -> bool:
        """Whether it draws its weights."""
        return self.kernel == "bayesian"


_VGG_FEATURES = (*(f"relu{number}" for number in range(1, 14)), "dense14", "relu14")
_RESIDUAL = ("resnet18", "resnet34", "resnet50", "resnet18_p1", "resnet34_p1", "resnet50_p1")
NETWORKS = {
    "lenet_conv": Kind("lenet_conv", "plain", (0.5, 0.7)),
    "lenet_conv_bayes": Kind("lenet_conv", "bayesian", (0.5, 0.7)),
    "vgg16": Kind("vgg16_dropout", "plain", (0.5, 0.8), _VGG_FEATURES),
    "vgg16_bayes": Kind("vgg16_dropout", "bayesian", (0.5, 0.8), _VGG_FEATURES),
    **{name: Kind(name, "plain", (0.5, 0.8)) for name in _RESIDUAL},
}
MODES = ("base", "bbd")
_UNDER_ATTACK = OnlyFor("--adv_train", lambda flags: flags.adv_train)
_VGG = OnlyFor("--net=vgg16 or vgg16_bayes", lambda flags: NETWORKS[flags.model].is_vgg)
_DRAWN = OnlyFor("networks that draw their weights", lambda flags: NETWORKS[flags.model].is_bayesian)
_NOT_DRAWN = OnlyFor("networks that do not draw their weights", lambda flags: not NETWORKS[flags.model].is_bayesian)
_GATED = only_with("mode", "bbd")
_PGD = only_with("attack", "pgd")
_BLACK_BOX = OnlyFor(
    "--eval_mode=attack --nowhite_box", lambda flags: flags.eval_mode == "attack" and not flags.white_box
)


def _robust_loss(name: str, refuse: bool = False) -> OnlyFor:
    return OnlyFor(
        f"--adv_train --robust_loss={name}", lambda flags: flags.adv_train and flags.robust_loss == name, refuse
    )


@dataclasses.dataclass
class Network(Settings):
    """The network, its gates, and what it begins with."""

    title = "Network"

    model: str = setting(
        "lenet_conv",
        "Architecture; those called bayes draw their weights.",
        choices=NETWORKS,
        aliases=("net",),
        identity=True,
    )
    mode: str = setting(
        "base", "Train the plain network (base), or add gates to a trained one (bbd).", choices=MODES, identity=True
    )
    init_from: str | None = setting(
        None, "Run whose weights training starts from; with --mode=bbd by default the base run of the same network."
    )
    thres: float = setting(
        1e-3, "Gates whose mean is at most this are closed.", upper=1, excluded=1, identity=True, only_for=_GATED
    )
    input_norm: str = setting(
        "image",
        "How pixels are normalized inside the network.",
        choices=INPUT_NORMS,
        identity=True,
        only_for=_VGG,
    )

    @classmethod
    def settle(cls) -> None:
        """The small network is for MNIST by default."""
        if cls.read().kind.is_lenet and not FLAGS["data"].present:
            FLAGS["data"].value = "mnist"

    def check(self) -> None:
        """Checks that the network can have gates, and its precision."""
        if self.kind.is_bayesian and self.mode == "bbd":
            raise BadFlag(f"--mode=bbd does not go with --net={self.model}; pass --net=lenet_conv or vgg16")
        if self.kind.is_bayesian and TrainingImages.read().mixed_precision:
            raise BadFlag(f"--net={self.model} computes in float32; leave out --mixed_precision")

    @property
    def kind(self) -> Kind:
        """The network of --net."""
        return NETWORKS[self.model]

    @property
    def is_gated(self) -> bool:
        """Whether the network has gates."""
        return self.mode == "bbd"

    def build(self, images: trs.data.ImageDataset, synchronized: bool = False) -> keras.Model:
        """Builds the network as it is drawn."""
        more: dict[str, Any] = {"gates": self.is_gated, "threshold": self.thres}
        if self.kind.is_residual:
            more = {"variant": trs.models.Variant(gates=self.is_gated, gate_threshold=self.thres)}
        elif self.kind.is_vgg:
            more["input_norm"] = self.input_norm
        with about("model", "data"):
            return trs.models.build(
                self.kind.builder,
                num_classes=images.num_classes,
                input_shape=images.train_images.shape[1:],
                kernel=self.kind.kernel,
                # The source is independent of what it attacks.
                seed=Data.read().seed + (1 << 20) * Training.read().train_source,
                synchronized_batch_norm=synchronized,
                **more,
            )

    def start(self) -> Path | None:
        """Returns the run that this one begins with.

        Raises:
            BadFlag: if gates have nothing to begin with.
        """
        if self.init_from:
            return Path(self.init_from).expanduser()
        if not self.is_gated:
            return None
        found = directory("base", attacked=False)
        if not (found / "network.keras").is_file() and not Run.read().resume:
            raise BadFlag(
                f"--mode=bbd begins with a finished run of --mode=base, and {found} holds none; train it, or pass "
                "--init_from=DIR of another one"
            )
        return found


@dataclasses.dataclass
class Training(Settings):
    """What is minimized."""

    title = "Training"

    adv_train: bool = setting(False, "Train under attack.", identity=True)
    train_source: bool = setting(
        False, "The independent network that black-box attacks are computed on.", identity=True
    )
    robust_loss: str = setting(
        "at", "With --adv_train: clean and attacked images, or TRADES.", choices=("at", "trades"), identity=True
    )
    adv_weight: float = setting(
        2.0,
        "Weight of attacked images relative to clean ones.",
        identity=True,
        only_for=_robust_loss("at", refuse=True),
    )
    trades_beta: float = setting(
        6.0,
        "Weight of the robust term of --robust_loss=trades.",
        identity=True,
        only_for=_robust_loss("trades", refuse=True),
    )
    vulnerability: bool = setting(
        True,
        "With --adv_train: also suppress the vulnerability of hidden features.",
        identity=True,
        only_for=_UNDER_ATTACK,
    )
    vulnerability_type: str = setting(
        "expected", "Mean over features, or the largest.", choices=VULNERABILITIES, identity=True
    )
    lambda_weight: float = setting(1e-4, "Weight of the vulnerability.", identity=True)
    beta_weight: float = setting(
        1.0, "Weight of the divergence of the gates, divided by the number of images.", identity=True
    )
    kl_weight: float = setting(
        100.0, "Divisor of the divergence of drawn weights.", excluded=0, identity=True, only_for=_DRAWN
    )
    joint_bn: bool = setting(
        True, "Clean and attacked images pass as one batch.", identity=True, only_for=_robust_loss("at")
    )
    vs_shared_noise: bool = setting(
        True, "Clean and attacked images see the same gates and dropout.", identity=True, only_for=_UNDER_ATTACK
    )

    @property
    def suppresses(self) -> bool:
        """Whether the vulnerability is suppressed."""
        return self.adv_train and self.vulnerability

    def objective(self, kind: Kind, images: int) -> trs.objectives.Objective:
        """Returns what is minimized for a network on so many images."""
        found: trs.objectives.Objective = trs.objectives.Natural()
        if self.adv_train:
            attack = Attack.read().build()
            found = (
                trs.objectives.TRADES(attack, self.trades_beta)
                if self.robust_loss == "trades"
                else trs.objectives.CleanAndAdversarial(
                    attack, self.adv_weight / (1 + self.adv_weight), joint=self.joint_bn
                )
            )
        if self.suppresses and self.lambda_weight:
            found = trs.objectives.VulnerabilitySuppression(
                found, self.lambda_weight, kind.features, self.vulnerability_type
            )
        return trs.objectives.KLPenalty(found, 1 / (images * self.kl_weight)) if kind.is_bayesian else found


@dataclasses.dataclass
class Optimizer(Settings):
    """Adam with the published rates."""

    title = "Training"

    init_lr: float = setting(
        1e-2,
        "Learning rate of the gates; --weight_rate sets that of the weights.",
        excluded=0,
        identity=True,
        only_for=_GATED,
    )
    weight_rate: float = setting(
        0.1, "Learning rate of the weights, as a share of the gates'.", identity=True, only_for=_GATED
    )
    base_lr: float = setting(
        1e-3,
        "Learning rate.",
        excluded=0,
        identity=True,
        only_for=only_with("mode", "base"),
    )
    lr_schedule: str = setting("drops", "Two tenfold drops, or none.", choices=("drops", "constant"), identity=True)
    weight_decay: float = setting(
        1e-4,
        "Strength of the weight decay, in the gradient; gates do not decay.",
        upper=1,
        identity=True,
        only_for=_NOT_DRAWN,
    )

    def build(self, network: Network, total_steps: int) -> keras.optimizers.Optimizer:
        """Returns Adam; of gates and weights with a rate for each."""
        rate = self.init_lr if network.is_gated else self.base_lr
        schedule: Any = rate
        if self.lr_schedule == "drops":
            boundaries = [int(total_steps * share) for share in network.kind.drops]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [rate, rate / 10, rate / 100])
        decay = 0.0 if network.kind.is_bayesian else self.weight_decay
        if network.is_gated:
            return trs.training.GatedAdam(schedule, gate_rate=1.0, weight_rate=self.weight_rate, l2=decay)
        return CoupledAdam(schedule, l2=decay, corrected_epsilon=False)  # as TensorFlow's


@dataclasses.dataclass
class Attack(attacks.TrainingAttack):
    """The attack of training and of --eval_mode=attack."""

    attack: str = setting("pgd", "Attack of training and of --eval_mode=attack.", choices=("pgd", "fgsm"))
    attack_ord: str = setting("inf", "Norm of the attack.", choices=("inf",))
    norm: str = setting("linf", "Norm of the attack, by its name in the other commands.", choices=("linf",))
    epsilon: float = like(attacks.TrainingAttack, "epsilon", default=0.03, aliases=("eps",))
    step_size: float = like(attacks.TrainingAttack, "step_size", default=0.007, excluded=0.0, aliases=(), only_for=_PGD)
    num_steps: int = setting(
        40, "Steps, in training and in --eval_mode=attack.", lower=1, aliases=("pgd_steps",), only_for=_PGD
    )
    eval_steps: int | None = setting(None, "Steps in --eval_mode=attack, if not --num_steps.", lower=1, only_for=_PGD)

    def build(self, steps: int | None = None, seed: int = 0) -> trs.attacks.GradientAttack:
        """Returns the attack, of `steps` steps or else of --num_steps."""
        if self.attack == "fgsm":
            return trs.attacks.LinfFGSM(self.epsilon, seed=seed)
        return trs.attacks.LinfPGD(self.epsilon, self.step_size, steps or self.num_steps, seed=seed)

    def for_evaluation(self) -> trs.attacks.GradientAttack:
        """Returns the attack of --eval_mode=attack."""
        return self.build(self.eval_steps, Data.read().seed)


@dataclasses.dataclass
class Augmentation(data.Augmentation):
    """How training images are varied."""

    @classmethod
    def settle(cls) -> None:
        """Images in memory are cropped by default, and digits not varied."""
        super().settle()
        if not FLAGS["augmentation"].present and not Data.read().is_in_files:
            FLAGS["augmentation"].value = "none" if Network.read().kind.is_lenet else "crop"


@dataclasses.dataclass
class Machines(machines.Machines):
    """Which devices train."""

    gpuid: int | None = setting(None, "Use this GPU alone; by default what --strategy takes.", recorded=False)


@dataclasses.dataclass
class Evaluation(Settings):
    """What is done with a finished run."""

    title = "Evaluation"

    eval_mode: str = setting("train", "Train, or evaluate the finished run.", choices=("train", "test", "attack"))
    white_box: bool = setting(True, "Attack the network itself; with --nowhite_box another one.")
    source: str | None = setting(
        None, "Run attacked with --nowhite_box; by default the one trained with --train_source --adv_train."
    )
    attack_source: str = setting("base", "Mode of that run.", choices=MODES, only_for=_BLACK_BOX)
    draw_loss: bool = setting(
        False,
        "Draw the loss around the first 100 test images.",
        only_for=only_with("eval_mode", "attack", refuse=True),
    )

    def check(self) -> None:
        """Checks that figures can be drawn."""
        if self.draw_loss:
            with about("draw_loss"):
                check_matplotlib()

    def source_directory(self) -> Path:
        """Returns the run that black-box attacks are computed on."""
        return Path(self.source).expanduser() if self.source else directory(self.attack_source, source=True)


def directory(mode: str | None = None, source: bool | None = None, attacked: bool | None = None) -> Path:
    """Returns where a run with these flags, or other ones, is written by default."""
    network, training = Network.read(), Training.read()
    attacked = training.adv_train if attacked is None else attacked
    source = training.train_source if source is None else source
    parts = [network.model, Path(Data.read().data).stem, *(["adv_train"] if attacked else [])]
    return Path("saved_models", *parts, "attack_source" if source else "default", mode or network.mode)


def deviations() -> list[str]:
    """Returns how this run differs from one of the published code with the same command line."""
    network, training = Network.read(), Training.read()
    is_vgg, has_batch_norm = network.kind.is_vgg, not network.kind.is_lenet
    every = {
        "weights, gates and images are drawn from seeds of their own; kernels start He-normal, biases at 0": True,
        "attacks move pixels of [0, 1], which the network then standardizes; there they move standardized ones": (
            is_vgg and training.adv_train
        ),
        "the distortion of the first layer has a gradient": training.suppresses,
        "clean and attacked images see the same gates and dropout (--vs_shared_noise)": (
            training.suppresses and training.vs_shared_noise
        ),
        "clean and attacked images pass as one batch (--joint_bn)": (
            has_batch_norm and training.adv_train and training.joint_bn and training.robust_loss == "at"
        ),
        "batch norm begins with the statistics of the base": has_batch_norm and network.is_gated,
        "FGSM stays in [0, 1]": training.adv_train and Attack.read().attack == "fgsm",
        "no layer has a ReLU on its logits": network.model == "lenet_conv_bayes",
        "residual networks, with gates inside their blocks; there only LeNet and VGG16": network.kind.is_residual,
        "all test images are measured, not full batches alone": True,
    }
    return [text for text, holds in every.items() if holds]
