"""How binary sub-networks are trained: settings, and the model, optimizer and callbacks of a run."""

import dataclasses
import functools
import math
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import training_run
from tf_robust_sparse.cli.binary.attacks import Attack, ValidationAttack
from tf_robust_sparse.cli.binary.network import FAST, LOTTERY, TRAINERS, Drawing, Network, Pruning, Trainer, trained_by
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections import data, method, scores
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.cli.settings import OnlyFor, Settings, like, only_with, setting
from tf_robust_sparse.objectives.reweighted import REWEIGHTINGS
from tf_robust_sparse.sparsity.binarization import StochasticBinarization
from tf_robust_sparse.training.by_epoch import POLICIES
from tf_robust_sparse.training.callbacks import TestMeasures
from tf_robust_sparse.training.gradual_pruning import GradualPruning, Reweighting
from tf_robust_sparse.training.mask_changes import MaskChanges
from tf_robust_sparse.training.optimizers import CoupledAdam

FLAGS = flags.FLAGS


_policy = functools.partial(only_with, "lr_policy")
_optimizer = functools.partial(only_with, "optimizer")


@dataclasses.dataclass
class TrainingImages(data.TrainingImages):
    """On which images a network is trained; pseudo-labeled ones are for another command."""

    pseudo_labels: str | None = setting(
        None,
        "Not supported here.",
        only_for=OnlyFor("trs train --objective=rst", lambda flags: False, refuse=True),
    )

    @classmethod
    def settle(cls) -> None:
        """Replicas train on full batches."""
        if not Machines.read().is_one_device and not FLAGS["drop_last"].present:
            FLAGS["drop_last"].value = True

    def check(self) -> None:
        """Checks that smaller batches can be trained on."""
        strategy = Machines.read().strategy
        if not self.drop_last and strategy != "none":
            raise BadFlag(f"--nodrop_last needs one device; leave it out with --strategy={strategy}")
        if not self.drop_last and training_run.odd_batches_may_crash():
            raise BadFlag(training_run.ODD_BATCHES)


@dataclasses.dataclass
class Sharpness(scores.Sharpness):
    """Scores of a sub-network that are moved to where the loss is larger."""

    s2ap_gamma: float = like(
        scores.Sharpness,
        "s2ap_gamma",
        only_for=OnlyFor(
            "--conv_type=SubnetConv with --trainer=adv_step or adv_trades",
            lambda flags: Network.read().is_subnet and flags.trainer not in (FAST, *LOTTERY),
            refuse=True,
        ),
    )


@dataclasses.dataclass
class Loss(Settings):
    """What training minimizes, in addition to what the trainer says."""

    title = "Training"

    beta: float = setting(6.0, "Weight of the robust term of adv_trades.", only_for=trained_by("adv_trades"))
    label_smoothing: float = setting(
        0.0,
        "Share of the loss that is the mean over all classes; not with adv_step_fast.",
        upper=1,
        excluded=1,
        identity=True,
        only_for=trained_by(*(name for name in TRAINERS if name != FAST)),
    )
    reweight: str | None = setting(
        None,
        "Weights of the examples; by default all weigh the same.",
        choices=REWEIGHTINGS,
        identity=True,
    )
    warmup_rw: int = setting(
        0,
        "Epochs before the weights of --reweight take effect.",
        only_for=OnlyFor("--reweight=NAME", lambda flags: bool(flags.reweight)),
    )

    def check(self) -> None:
        """Checks that the examples can be weighed."""
        trainer = Trainer.read().trainer
        if self.reweight and "nat_max" in self.reweight and trainer != "adv_trades":
            raise BadFlag(f"--reweight={self.reweight} needs --trainer=adv_trades instead of --trainer={trainer}")


@dataclasses.dataclass
class Watch(Settings):
    """What is measured and written between the epochs."""

    title = "Training"

    debug: bool = setting(
        False,
        "Write which connections and batch norms changed when held-out accuracy falls and recovers at once, and in the "
        "last two epochs.",
        only_for=OnlyFor("--conv_type=SubnetConv", lambda flags: Network.read().is_subnet, refuse=True),
    )
    explode_th: float = setting(
        5.0,
        "--debug: by how many points it must fall and recover.",
        only_for=OnlyFor("--debug", lambda flags: flags.debug, refuse=True),
    )
    test_every_epoch: bool = setting(
        False,
        "Measure the test images after every epoch too, clean and under the attack on held-out ones; no epoch is "
        "chosen by them.",
    )


@dataclasses.dataclass
class Optimizer(Settings):
    """Optimizer and course of the learning rate."""

    title = "Training"

    optimizer: str = setting(
        "sgd", "Optimizer; weight decay is in its gradient.", choices=("sgd", "adam"), identity=True
    )
    learning_rate: float = setting(0.1, "Learning rate at the beginning.", excluded=0, aliases=("lr",), identity=True)
    lr_policy: str = setting("constant_lr", "Course of the learning rate.", choices=POLICIES, identity=True)
    alpha: float = setting(0.0, "Share of the learning rate at the end.", upper=1, only_for=_policy("cosine_lr"))
    lr_adjust: int = setting(30, "Epochs between two drops.", lower=1, only_for=_policy("multistep_lr"))
    lr_gamma: float = setting(
        0.1, "Factor of a drop.", excluded=0, only_for=_policy("multistep_lr", "manual_multistep_lr")
    )
    lr_epochs: list[str] | None = setting(None, "manual_multistep_lr: epochs of the drops.")
    slope: float = setting(0.0, "Change per epoch.", lower=-math.inf, only_for=_policy("linear_lr"))
    power: float = setting(1.0, "Factor per interval.", excluded=0, only_for=_policy("exponential_lr", "jump_lr"))
    interval: int = setting(1, "Epochs of an interval.", lower=1, only_for=_policy("exponential_lr"))
    min_jump_pt: int = setting(0, "Epoch of the first jump.", only_for=_policy("jump_lr"))
    jump_freq: int = setting(1, "Epochs between two jumps.", lower=1, only_for=_policy("jump_lr"))
    min_v: float | None = setting(None, "Least learning rate.")
    max_v: float | None = setting(None, "Largest learning rate.")
    weight_decay: float = setting(1e-4, "Strength of the weight decay; scores decay too.", upper=1, aliases=("wd",))
    no_bn_decay: bool = setting(False, "Leave scale and shift of batch norm without decay.")
    momentum: float = setting(0.9, "Momentum.", upper=1, excluded=1, only_for=_optimizer("sgd"))
    nesterov: bool = setting(False, "Nesterov's momentum.", only_for=_optimizer("sgd"))
    beta1: float = setting(0.9, "Decay of the first moment.", upper=1, excluded=1, only_for=_optimizer("adam"))
    beta2: float = setting(0.999, "Decay of the second moment.", upper=1, excluded=1, only_for=_optimizer("adam"))
    eps: float = setting(1e-8, "Added to the root of the second moment.", excluded=0, only_for=_optimizer("adam"))
    amsgrad: bool = setting(False, "The AMSGrad variant.", only_for=_optimizer("adam"))

    def rates(self, epochs: int) -> list[float]:
        """Returns the learning rate of each epoch."""
        pruning = Pruning.read()
        with about("lr_policy", "learning_rate", "lr_epochs"):
            return trs.training.policy_rates(
                self.lr_policy,
                self.learning_rate,
                epochs,
                pruning.warmup_length,
                pruning.pr_steps,
                alpha=self.alpha,
                interval=self.lr_adjust if self.lr_policy == "multistep_lr" else self.interval,
                gamma=self.lr_gamma,
                milestones=[int(epoch) for epoch in self.lr_epochs or ()],
                slope=self.slope,
                power=self.power,
                min_jump=self.min_jump_pt,
                jump_interval=self.jump_freq,
                lowest=self.min_v,
                highest=self.max_v,
            )

    def build(self, epochs: int, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """Returns the optimizer of a run of so many epochs."""
        schedule = trs.training.PerEpoch(self.rates(epochs), steps_per_epoch)
        decay: dict[str, Any] = {"l2": self.weight_decay, "decay_batch_norm": not self.no_bn_decay}
        if self.optimizer == "sgd":
            return method.scaled(
                trs.training.CoupledSGD(schedule, momentum=self.momentum, nesterov=self.nesterov, **decay)
            )
        return method.scaled(
            CoupledAdam(schedule, beta_1=self.beta1, beta_2=self.beta2, epsilon=self.eps, amsgrad=self.amsgrad, **decay)
        )


def model(run: training_run.TrainingRun, network: keras.Model) -> trs.RobustModel:
    """Returns the compiled model that trains `network`."""
    trainer, loss, drawing, seed = Trainer.read().trainer, Loss.read(), Drawing.read(), Data.read().seed
    objective = Sharpness.read().around(Attack.read().objective(run, loss.beta, loss.label_smoothing))
    if loss.reweight:
        objective = trs.objectives.Reweighted(objective, loss.reweight)
    draws = drawing.binconv_stochastic and not drawing.binconv_freeze_rand
    sparsifier = StochasticBinarization(seed) if draws else None
    kind = trs.training.StoredRobustModel if trainer == FAST else trs.RobustModel
    found = kind(network, objective, sparsifier, validation_attack=ValidationAttack.read().build(), seed=seed)
    found.compile(Optimizer.read().build(run.epochs, run.steps_per_epoch), metrics=["accuracy"])
    return found


def callbacks(run: training_run.TrainingRun, model: trs.RobustModel) -> tuple[keras.callbacks.Callback, ...]:
    """Returns what happens between the epochs."""
    pruning, watch = Pruning.read(), Watch.read()
    found: list[keras.callbacks.Callback] = []
    if pruning.pr_steps > 1:
        masks = run.directory / "masks" if training_run.is_chief() else None
        found.append(GradualPruning(pruning.rates(), lambda rate: pruning.fractions(model.network, rate), masks=masks))
    if isinstance(model.objective, trs.objectives.Reweighted):
        found.append(Reweighting(model.objective, Loss.read().warmup_rw))
    if Network.read().is_subnet:
        found.append(trs.training.PhaseCheck(model.network))
    if watch.test_every_epoch:
        found.append(TestMeasures(Data.read().test_batches(run.images)))
    if watch.debug and training_run.is_chief():
        found.append(MaskChanges(run.directory / "changes", watch.explode_th / 100))
    return tuple(found)


def end(model: trs.RobustModel) -> None:
    """Sets the fractions of the last stage, in which a run that was interrupted after it would not be otherwise."""
    pruning = Pruning.read()
    if pruning.pr_steps > 1:
        trs.sparsity.set_keep_fractions(model.network, pruning.fractions(model.network))


def run_name() -> str:
    """Returns the directory name of a run with these flags."""
    network, pruning, trainer = Network.read(), Pruning.read(), Trainer.read().trainer
    kind = {"DenseConv": "dense", "BinConv": "bnn"}.get(network.conv_type, "binary")
    degree = f"{pruning.prune_rate!r}_p{pruning.pr_scale!r}" if network.is_subnet else ""
    return f"{Data.read().short_name}_{network.model}_{kind}_{trainer}{degree}"


def config() -> dict[str, Any]:
    """Returns what --resume cannot change, in addition to the settings that say so."""
    # Runs from before --drop_last, which left that batch out, have no entry.
    return {"drop_last": None if TrainingImages.read().drop_last else False}


def deviations() -> list[str]:
    """Returns how this run differs from one of the published code with the same command line."""
    network, pruning, attack, trainer = Network.read(), Pruning.read(), Attack.read(), Trainer.read()
    images, several = TrainingImages.read(), not Machines.read().is_one_device
    is_fast, is_trades = trainer.trainer == FAST, trainer.trainer == "adv_trades"
    every = {
        "masks, signs, crops and attacks are drawn from seeds of their own": True,
        "the test images are measured at the end alone; --test_every_epoch measures them after each epoch": (
            not Watch.read().test_every_epoch
        ),
        "training images are held out to choose an epoch by; there, without --valid_ratio, test images choose it": (
            images.valid_ratio is None and Run.read().select.startswith("best")
        ),
        "images are normalized without --normalize too; pass --normalize=none": (
            network.normalize is None and network.model.endswith("_imagenet")
        ),
        "weights stand still without --freeze_weights too": (
            FLAGS["freeze_weights"].using_default_value and network.is_subnet and not trainer.is_lottery
        ),
        "batch norm takes its statistics over all replicas, not over those of the first": several,
        "the last, smaller batch of an epoch is left out; --nodrop_last trains on it": images.drop_last,
        "attacks use the moving statistics of batch norm, not those of the batch": (
            attack.attack_bn == "eval" or (several and not is_trades and not is_fast)
        ),
        "attacks start without the perturbation of the epoch before": is_fast and not attack.carry,
        "training aims at the last point of PGD": (
            attack.attack_select == "last" and trainer.trainer in ("adv_step", *LOTTERY)
        ),
        "kept perturbations are float16": is_fast and attack.carry,
        "labels of mixed images are shared by area": attack.mix is not None,
        "training aims at soft targets": attack.soft_targets,
        "TRADES sees --eps_schedule": attack.eps_schedule is not None and is_trades,
        "all layers keep 1 before the first stage of --pr_steps": pruning.pr_steps > 1 and pruning.warmup_length > 0,
        "TRADES sees --pr_steps": pruning.pr_steps > 1 and is_trades,
        "all layers get new weights, not the first and those of blocks alone": (
            trainer.trainer == "adv_step_lottery_retrain"
        ),
        "--prune_rate is what FixedSubnetConv keeps, not what it drops": network.conv_type == "FixedSubnetConv",
    }
    return [text for text, holds in every.items() if holds]
