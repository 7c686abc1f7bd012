"""Lottery tickets by the names of the published experiments: what is trained and pruned, and what that is called."""

import dataclasses
from pathlib import Path

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.settings import Settings, like, setting
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.sparsity import masked_kernels
from tf_robust_sparse.sparsity.iterative_magnitude import CUTOFFS, PruningRule, iterative_magnitude
from tf_robust_sparse.training.optimizers import FusedAdam

FLAGS = flags.FLAGS

DENSE = "dense-300-100"
DATASETS = {"digits": "mnist", "fashion": "fashion_mnist", "sample": "fashion_mnist_sample"}  # published name -> ours
ATTACKS = ("fgsm", "pgd")
# What the name of an experiment tells where it is not as published: word in the name -> setting.
_VARIANTS = {
    "rewind": "rewind_step",
    "cutoff": "cutoff",
    "label": "attack_label",
    "eps": "eps",
    "pgdsteps": "pgd_steps",
    "pgdstepsize": "pgd_step_size",
    "smoothing": "label_smoothing",
    "smoothvalid": "smooth_valid_labels",
    "percents": "percents",
    "seed": "seed",
}


@dataclasses.dataclass
class Images(Data):
    """Digits by default; other images or seeds make another experiment."""

    data: str = like(Data, "data", default="mnist")
    image_size: int | None = like(Data, "image_size", identity=True)
    test_examples: int | None = like(Data, "test_examples", identity=True)
    batch_size: int = like(Data, "batch_size", default=60)
    seed: int = like(Data, "seed", default=1234)

    @property
    def published_name(self) -> str:
        """What the data are called in paths: digits, fashion, sample, or our name."""
        return {value: name for name, value in DATASETS.items()}.get(self.data, self.short_name)


@dataclasses.dataclass
class Experiment(Settings):
    """What is trained, and where it is written or found."""

    title = "Experiment"

    dataset: str | None = setting("digits", "Data set; the same as --data.", choices=(*DATASETS, *trs.data.DATASETS))
    model: str = setting(
        DENSE,
        "Network; only trials of dense-300-100 are trained together.",
        choices=(DENSE, *trs.models.NETWORKS),
        identity=True,
    )
    attack: str = setting(
        "fgsm", "Attack to measure; with --adv_train also the attack of training.", choices=ATTACKS, identity=True
    )
    adv_train: bool = setting(
        False, "Train on clean and attacked images, half and half; else on clean ones.", identity=True
    )
    learning_rate: float = setting(
        0.0012, "Learning rate of Adam, constant.", excluded=0, aliases=("lr",), identity=True
    )
    l1_reg: float = setting(
        0.0, "Strength of the L1 penalty on the weights that are left.", aliases=("l1",), identity=True
    )
    base_dir: str = setting("./output", "Folder of all experiments.")
    force: bool = setting(False, "Start from scratch, removing what is there.", recorded=False)

    @classmethod
    def settle(cls) -> None:
        """Sets --data by --dataset; where --data alone is given, --dataset has no value and is not recorded."""
        dataset, data = FLAGS["dataset"], FLAGS["data"]
        meant = DATASETS.get(dataset.value, dataset.value)
        if not data.present:
            data.value = meant
        elif not dataset.present:
            dataset.value = None
        elif data.value != meant:
            raise BadFlag(f"--dataset={dataset.value} and --data={data.value} name different images; pass one of them")

    @property
    def folder(self) -> Path:
        """The folder of all experiments."""
        return Path(self.base_dir).expanduser()

    @property
    def kind(self) -> list[str]:
        """Learning rate and L1 penalty as words of a name."""
        return [f"lr-{self.learning_rate!r}", f"l1-{self.l1_reg!r}"]

    def directory(self, strategy: str, images: Images | None = None) -> Path:
        """Returns the directory of the experiment with a strategy, or of its `analysis`; `images` for other data."""
        name = "_".join([*self.kind, f"advtrain-{str(self.adv_train).lower()}", *_variants(strategy)])
        data = (images or Images.read()).published_name
        return self.folder / data / self.model / strategy / self.attack / name

    def table_name(self, images: Images) -> str:
        """Returns what tables are called: by the data, and what is not as published."""
        network = [] if self.model == DENSE else [self.model]
        kind = [word for word in self.kind if word not in Experiment().kind]
        return "_".join([images.published_name, *network, *kind, *_variants("reinit_orig")])

    def network(self, images: trs.data.ImageDataset, seed: int) -> keras.Model:
        """Builds the network with masked kernels."""
        shape = images.train_images.shape[1:]
        with about("model", "data"):
            if self.model == DENSE:
                return unbiased_dense_300_100(images.num_classes, shape, seed=seed)
            return trs.models.build(
                self.model, num_classes=images.num_classes, input_shape=shape, kernel="masked", seed=seed
            )

    def objective(self, attack: trs.attacks.GradientAttack) -> trs.objectives.Objective:
        """Returns what training minimizes, under `attack` if it is adversarial."""
        smoothing = Variants.read().label_smoothing
        found: trs.objectives.Objective = trs.objectives.Natural(smoothing)
        if self.adv_train:
            found = trs.objectives.CleanAndAdversarial(attack, label_smoothing=smoothing)
        return trs.objectives.L1Penalty(found, self.l1_reg) if self.l1_reg else found

    def optimizer(self) -> keras.optimizers.Optimizer:
        """Returns Adam with the published settings; as one operation per variable where there is one device."""
        kind = FusedAdam if Machines.read().is_one_device else keras.optimizers.Adam
        return kind(self.learning_rate)

    def build_attack(self, name: str | None = None) -> trs.attacks.GradientAttack:
        """Returns the attack of --attack, or of another name."""
        found = Attack.read().build(name or self.attack)
        found.unrolled = self.model == DENSE and found.num_steps <= 50
        return found


@dataclasses.dataclass
class Variants(Settings):
    """What may be otherwise than published; the name of an experiment tells."""

    title = "Variants"

    rewind_step: str = setting(
        "0",
        "Of reinit_orig: the step of round 0 to go back to, or trained for its end (as in the published code).",
        identity=True,
    )
    cutoff: str = setting(
        "inclusive",
        "Whether the weight at the cutoff goes too, as in the published code.",
        choices=CUTOFFS,
        identity=True,
    )
    percents: list[str] | None = setting(
        None,
        "Share that a pruning removes, layer=share; by default 0.2 of each layer and 0.1 of the last one.",
        identity=True,
    )
    label_smoothing: float = setting(
        0.1, "Share of a training label spread over all classes.", upper=1, excluded=1, identity=True
    )
    smooth_valid_labels: bool = setting(
        True, "Smooth the labels of the held-out images too, as the published code does.", identity=True
    )

    def check(self) -> None:
        """Checks what is written in words."""
        self.rewind()
        self.shares()

    def rewind(self) -> int | str:
        """Returns the step of --rewind_step, or trained.

        Raises:
            BadFlag: if it is neither.
        """
        text = self.rewind_step
        if text != "trained" and not (text.isascii() and text.isdigit()):
            raise BadFlag(f"--rewind_step={text}: expected a step such as 0 or 500, or trained")
        return text if text == "trained" else int(text)

    def shares(self) -> dict[str, float]:
        """Returns the shares of --percents by layer; empty without.

        Raises:
            BadFlag: if they are not like layer=share.
        """
        found = {}
        for word in self.percents or []:
            name, _, value = word.partition("=")
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = -1.0
            if not 0 <= found[name] <= 1:
                raise BadFlag(f"--percents={word}: expected layer=share with shares in [0, 1], such as output=0.1")
        return found

    def rule(self, network: keras.Model) -> PruningRule:
        """Returns the pruning rule for the layers of `network`.

        Raises:
            BadFlag: if --percents names other layers.
        """
        names = [kernel.name for kernel in masked_kernels.find(network)]
        given = self.shares()
        strange = ", ".join(sorted(set(given) - set(names)))
        if strange:
            raise BadFlag(
                f"--percents: {Experiment.read().model} has no layer {strange}; expected layers of {', '.join(names)}"
            )
        return iterative_magnitude({**dict.fromkeys(names, 0.2), names[-1]: 0.1, **given}, self.cutoff)


@dataclasses.dataclass
class Attack(Settings):
    """The attacks of training and measurement."""

    title = "Attack"

    eps: float = setting(0.3, "Radius in pixels of [0, 1].", upper=1, identity=True)
    pgd_steps: int = setting(10, "Steps of PGD.", lower=1, identity=True)
    pgd_step_size: float = setting(0.05, "Length of a step of PGD.", identity=True)
    attack_label: str = setting(
        "predicted",
        "Lead away from the predicted class, as the published code does, or from the true one.",
        choices=("predicted", "true"),
        identity=True,
    )

    def build(self, name: str) -> trs.attacks.GradientAttack:
        """Returns the attack of a name of `ATTACKS`."""
        if name == "fgsm":
            return trs.attacks.LinfFGSM(self.eps, label=self.attack_label)
        return trs.attacks.LinfPGD(self.eps, self.pgd_step_size, self.pgd_steps, label=self.attack_label)


def place_flags() -> list[str]:
    """Returns the arguments by which the analysis finds the experiment of the command line."""
    names = [field.name for field in dataclasses.fields(Experiment) if field.name not in ("dataset", "force")]
    own = [FLAGS[name] for name in (*names, *_VARIANTS.values())]
    data = FLAGS["dataset" if FLAGS.dataset else "data"]
    return [data.serialize(), *(flag.serialize() for flag in own if flag.value != flag.default)]


def _variants(strategy: str) -> list[str]:
    values, published = (
        {**vars(variants), **vars(attack), "seed": images.seed}
        for variants, attack, images in (
            (Variants.read(), Attack.read(), Images.read()),
            (Variants(), Attack(), Images()),
        )
    )
    parts = []
    for word, name in _VARIANTS.items():
        value = values[name]
        rewound = strategy in ("reinit_orig", "analysis")  # the others have no use for a step to go back to
        if value != published[name] and (rewound or name != "rewind_step"):
            parts.append(f"{word}-{'+'.join(value) if isinstance(value, list) else str(value).lower()}")
    return parts
