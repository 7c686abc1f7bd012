"""Network, objective and optimizer: what is trained, on which loss, by which rule; and what a run is called."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli import networks
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.data import Data, TrainingImages
from tf_robust_sparse.cli.sections.recipe import OneStep, Views, WeightPerturbation
from tf_robust_sparse.cli.sections.sparsity import OneShot, Sparsity, chosen
from tf_robust_sparse.cli.settings import OnlyFor, Settings, has, only_with, setting
from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.models.network_builder import ACTIVATIONS
from tf_robust_sparse.training.learning_rate import COURSES


def _trades(attack: trs.attacks.GradientAttack, terms: "Terms") -> trs.objectives.Objective:
    return trs.objectives.TRADES(attack, terms.beta, terms.trades_start, terms.label_smoothing)


# Name -> the objective for an attack and the settings of `Terms`.
OBJECTIVES: dict[str, Callable[[trs.attacks.GradientAttack, "Terms"], trs.objectives.Objective]] = {
    "natural": lambda attack, terms: trs.objectives.Natural(terms.label_smoothing),
    "at": lambda attack, terms: trs.objectives.AT(attack, terms.label_smoothing),
    "mat": lambda attack, terms: trs.objectives.MAT(attack),
    "trades": _trades,
    "mart": lambda attack, terms: trs.objectives.MART(attack, terms.beta),
    "rst": _trades,  # on labeled and pseudo-labeled images
    "dkl": lambda attack, terms: trs.objectives.DKL(
        *(attack, terms.dkl_alpha, terms.dkl_beta, terms.dkl_gamma, terms.dkl_temperature, terms.trades_start)
    ),
}


_of = functools.partial(only_with, "objective")


@dataclasses.dataclass
class Network(Settings):
    """The architecture."""

    title = "Network"

    model: str = setting("vgg16", "Architecture.", choices=trs.models.NETWORKS, identity=True)
    padding_mode: str = setting(
        "tf_same",
        "How strided convolutions pad: as TensorFlow does, or symmetric as PyTorch does.",
        choices=("tf_same", "symmetric"),
        identity=True,
    )

    activation: str = setting(
        "relu", "Activation of the network; silu is smooth, which helps.", choices=ACTIVATIONS, identity=True
    )

    def build(
        self, images: trs.data.ImageDataset, kernel: str, seed: int, synchronized: bool = False, **more: Any
    ) -> keras.Model:
        """Builds the network for the data.

        Args:
            images: The data, whose size and classes it is built for.
            kernel: The parametrization of its kernels.
            seed: Of its weights.
            synchronized: Whether batch norm takes its statistics over all replicas.
            **more: Further arguments of the builder.
        """
        with about("model", "data"):
            return trs.models.build(
                self.model,
                self.activation,
                num_classes=images.num_classes,
                input_shape=images.train_images.shape[1:],
                kernel=kernel,
                padding_mode=self.padding_mode,
                seed=seed,
                synchronized_batch_norm=synchronized,
                **more,
            )


@dataclasses.dataclass
class Objective(Settings):
    """What training minimizes."""

    title = "Network"

    objective: str = setting(
        "at", "What training minimizes; rst needs --pseudo_labels.", choices=OBJECTIVES, identity=True
    )

    def check(self) -> None:
        """Checks that pseudo-labels come with the objective that takes them."""
        if not has(TrainingImages):
            return  # a finished run is looked for
        amount, batch_size = TrainingImages.read(), Data.read().batch_size
        if (amount.pseudo_labels is None) == (self.objective == "rst"):
            raise BadFlag(
                "--objective=rst and --pseudo_labels=FILE go together. "
                f"Received: --objective={self.objective} --pseudo_labels={amount.pseudo_labels}"
            )
        if chosen() == "flying_bird_plus" and (self.objective == "natural" or amount.validation_examples == 0):
            raise BadFlag(
                "--sparsifier=flying_bird_plus watches robust accuracy in training and validation; pass "
                "--objective=at, trades or mart, and no --validation_examples=0. Received: "
                f"--objective={self.objective}, --validation_examples={amount.validation_examples}"
            )
        part = int(batch_size * amount.rst_frac)
        if self.objective == "rst" and not 1 <= part < batch_size:
            raise BadFlag(
                f"--rst_frac={amount.rst_frac:g}: expected images of both kinds in a batch. "
                f"Received: --batch_size={batch_size}, of which {part} are pseudo-labeled"
            )


@dataclasses.dataclass
class Terms(Settings):
    """Of the objective's terms."""

    title = "Training"

    # Published command lines pass beta with every objective.
    beta: float = setting(
        6.0, "Weight of the robust term of trades, rst and mart.", only_for=_of("trades", "mart", "rst")
    )
    trades_start: str = setting(
        "gaussian",
        "Where the attack of TRADES and DKL starts: a thousandth away from the image as published, or in the ball.",
        choices=("gaussian", "uniform"),
        only_for=_of("trades", "rst", "dkl", refuse=True),
    )
    label_smoothing: float = setting(
        0.0,
        "Share of each label that is spread over all classes; recipes with TRADES: 0.1.",
        upper=1,
        excluded=1,
        identity=True,
        only_for=_of("natural", "at", "trades", "rst", refuse=True),
    )

    dkl_alpha: float = setting(
        4.0, "Weight of the soft cross entropy.", identity=True, only_for=_of("dkl", refuse=True)
    )
    dkl_beta: float = setting(
        20.0, "Weight of the squared differences of logits.", identity=True, only_for=_of("dkl", refuse=True)
    )
    dkl_gamma: float = setting(
        1.0, "Exponent of the prior of the classes.", identity=True, only_for=_of("dkl", refuse=True)
    )
    dkl_temperature: float = setting(
        4.0, "Temperature of that prior.", excluded=0, identity=True, only_for=_of("dkl", refuse=True)
    )

    def build(self, steps_per_epoch: int, flip: bool) -> trs.objectives.Objective:
        """Returns the objective of the command line.

        Args:
            steps_per_epoch: Steps of an epoch.
            flip: Whether augmentations mirror images.
        """
        one_step = OneStep.read()
        found = Views.read().around(OBJECTIVES[Objective.read().objective](one_step.build(), self), flip)
        if one_step.grad_align:
            with about("grad_align", "objective"):
                found = trs.objectives.GradAlign(found, one_step.grad_align, Data.read().seed)
        return WeightPerturbation.read().around(found, steps_per_epoch)


@dataclasses.dataclass
class Optimizer(Settings):
    """SGD with the decay and the schedule of the connectivity sampling paper."""

    title = "Training"

    learning_rate: float = setting(
        0.1,
        "Initial learning rate; falls tenfold after 1/2 and 3/4 of all steps.",
        excluded=0,
        aliases=("l_rate", "lr"),
    )
    weight_decay: float = setting(
        5e-4,
        "Initial share of each weight taken off per step; falls as the learning rate does.",
        upper=1,
        aliases=("w_decay", "wd"),
    )
    momentum: float = setting(0.9, "Momentum of SGD.", upper=1, excluded=1)
    decay_bias_and_bn: bool = setting(True, "Let biases and batch norm parameters decay too.")
    lr_course: str = setting(
        "drops",
        "Course of the learning rate: tenfold drops, constant, or a warm-up and a decline after it.",
        choices=COURSES,
        identity=True,
    )
    lr_warmup: float = setting(
        0.0,
        "Share of all steps in which the learning rate rises; one-cycle recipes: 0.025, N-FGSM: 0.4.",
        upper=1,
        excluded=1,
        identity=True,
        only_for=OnlyFor(
            "--lr_course=cosine, one_cycle or triangular",
            lambda flags: flags.lr_course in COURSES[2:],
            refuse=True,
        ),
    )
    nesterov: bool = setting(False, "Nesterov's momentum.", identity=True)

    def build(self, total_steps: int) -> keras.optimizers.Optimizer:
        """Returns the optimizer for a run of so many steps."""
        sgd = trs.training.sgdw(
            self.learning_rate,
            self.weight_decay,
            total_steps,
            self.momentum,
            self.decay_bias_and_bn,
            self.lr_course,
            self.lr_warmup,
            self.nesterov,
        )
        return scaled(sgd)


def scaled(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer, with scaled losses in float16."""
    return keras.optimizers.LossScaleOptimizer(optimizer) if TrainingImages.read().mixed_precision else optimizer


def network(images: trs.data.ImageDataset, synchronized: bool = False) -> keras.Model:
    """Builds the network of the command line, with the parametrization its sparsifier needs and the given weights."""
    sparsity, data = Sparsity.read(), Data.read()
    more = {"connectivity": sparsity.connectivity} if sparsity.kernel == "rewiring" else {}
    found = Network.read().build(images, sparsity.kernel, data.seed, synchronized, **more)
    source = OneShot.read().source_net
    if source:
        given = networks.load(source, "source_net", layers=True)
        with about("source_net"):
            trs.saving.copy_weights(given, found)
    return found


def pruning_images(
    images: trs.data.ImageDataset, network: keras.Model, objective: trs.objectives.Objective
) -> np.ndarray:
    """Returns the training images that --sparsifier=obs prunes by, as `objective` trains on them, attacked or not."""
    number, data = OneShot.read().obs_images, Data.read()
    batches = trs.data.test_dataset(images.train_images[:number], images.train_labels[:number], data.batch_size)
    with cached_for_inference(network):
        parts = [objective.perturb(network, x, y, seed=data.seed) for x, y in batches]
    return np.concatenate(parts)


def define() -> None:
    """Defines what says which network on which objective a run trains, and how sparse: what the run is called."""
    Network.define()
    Objective.define()
    Sparsity.define()


def run_name() -> str:
    """Returns the directory name of a run with these flags: data, model, objective and how sparse."""
    sparsity = Sparsity.read()
    how = {"none": "dense", "connectivity_sampling": "sparse"}.get(sparsity.name, sparsity.name)
    network, objective = Network.read().model, Objective.read().objective
    return f"{Data.read().short_name}_{network}_{objective}_{how}{sparsity.degree}"


def default_directory() -> Path:
    """Returns where a run with these flags is written, relative to the working directory."""
    return Path("saved_models") / run_name()


def published_weights() -> Path:
    """Returns where the published code of connectivity sampling keeps the weights of a run with these flags.

    As there, the degree is the connectivity in percent, cut to a whole number; below 1 a zero and its thousandths.
    """
    sparsity = Sparsity.read()
    degree = "full"
    if sparsity.name == "connectivity_sampling":
        percent = sparsity.connectivity * 100
        degree = f"sparse{int(percent)}" if percent >= 1 else f"sparse0{int(sparsity.connectivity * 1000)}"
    folder = Path("results", Data.read().data, Network.read().model)
    return folder / f"{degree}_{Objective.read().objective}_best_weights.pickle"
