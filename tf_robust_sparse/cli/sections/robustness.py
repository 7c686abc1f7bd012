"""The attacks of the robustness evaluation, and the files that it writes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse.cli import networks, run_directory
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.attacks import check_radius
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.settings import FLAGS, OnlyFor, Settings, setting
from tf_robust_sparse.evaluation.attack_versions import VERSIONS
from tf_robust_sparse.evaluation.ensemble_run import examples_path
from tf_robust_sparse.evaluation.examples import check_image_shape
from tf_robust_sparse.evaluation.figure_style import check_matplotlib, figure_files
from tf_robust_sparse.evaluation.report_page import report_files
from tf_robust_sparse.layers.forward import inference_forward

# The norms of each attack, in the order of the help.
NORMS_OF = {
    "clean": ("Linf", "L2", "L1", "L0"),
    "fgsm": ("Linf", "L2"),
    "pgd": ("Linf", "L2"),
    "autoattack": ("Linf", "L2", "L1"),
    "square": ("Linf", "L2", "L1"),
    "transfer": ("Linf", "L2"),
    "corruptions": ("Linf", "L2", "L1", "L0"),
    "fmn": ("Linf", "L2", "L1", "L0"),
    "hofmn": ("Linf",),
    "ddn": ("L2",),
    "deepfool": ("Linf", "L2"),
    "sigma_zero": ("L0",),
}
ATTACKS = tuple(NORMS_OF)
MINIMUM_NORM: dict[str, type[trs.attacks.MinimumNormAttack]] = {
    "fmn": trs.attacks.FMN,
    "hofmn": trs.attacks.HOFMN,
    "ddn": trs.attacks.DDN,
    "deepfool": trs.attacks.DeepFool,
    "sigma_zero": trs.attacks.SigmaZero,
}
# Of the usual leaderboards on CIFAR-10; in L0, pixels times channels.
EPSILONS = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0, "L0": 10.0}
USUAL = {
    "Linf": ["clean", "fgsm", "pgd", "autoattack"],
    "L2": ["clean", "fgsm", "pgd", "autoattack"],
    "L1": ["clean", "autoattack"],
    "L0": ["clean", "sigma_zero"],
}
GRADIENT_ATTACKS = {
    "Linf": (trs.attacks.LinfFGSM, trs.attacks.LinfPGD),
    "L2": (trs.attacks.L2FGSM, trs.attacks.L2PGD),
}


def with_attacks(*names: str, of_curves: bool = False) -> OnlyFor:
    """Returns the rule of a setting that one of these attacks needs.

    Args:
        *names: The attacks.
        of_curves: Whether --epsilons takes it too.
    """
    owners = f"--attacks with {' or '.join(names)}{', or --epsilons' if of_curves else ''}"
    return OnlyFor(
        owners, lambda flags: bool({*names} & {*flags.attacks} or (of_curves and flags.epsilons)), refuse=True
    )


@dataclasses.dataclass
class Attacks(Settings):
    """What is measured."""

    title = "Attacks"
    _pgd = with_attacks("pgd", "transfer", of_curves=True)

    attacks: list[str] | None = setting(
        None,
        f"What to measure, in this order, of {', '.join(ATTACKS)}; by default clean,fgsm,pgd,autoattack, "
        "clean,autoattack with --norm=L1, and clean,sigma_zero with --norm=L0.",
    )
    norm: str = setting("Linf", "Norm of the ball around each image.", choices=EPSILONS)
    epsilon: float | None = setting(
        None,
        "Radius in pixels of [0, 1]; by default 8/255, 0.5 for L2, 12 for L1. For L0, how many entries (pixels times "
        "channels) may change; by default 10.",
        excluded=0,
        aliases=("pgd_epsilon",),
    )
    pgd_iters: int = setting(50, "Steps of PGD, each 2.5 * epsilon / steps long.", lower=1, only_for=_pgd)
    pgd_restarts: int = setting(
        10, "Random starts of PGD; an image is robust if it withstands all.", lower=1, only_for=_pgd
    )
    min_norm_steps: int | None = setting(
        None,
        "Steps of the attacks that look for the nearest example; by default 100, 200 for hofmn, 50 for deepfool.",
        lower=1,
        only_for=with_attacks(*MINIMUM_NORM),
    )
    version: str = setting(
        "standard",
        "Version of AutoAttack; rand for randomized networks.",
        choices=VERSIONS,
        only_for=with_attacks("autoattack"),
    )
    individual: bool = setting(
        False,
        "Run every attack of AutoAttack on all images, not only on those that withstood the ones before.",
        only_for=with_attacks("autoattack"),
    )
    transfer_from: str | None = setting(
        None,
        "Network on which the transfer attack finds its examples: as --network, but not a file of weights alone.",
        only_for=with_attacks("transfer"),
    )
    corruptions_dir: str | None = setting(
        None,
        "Folder with the files of CIFAR-10-C; otherwise they are computed.",
        only_for=with_attacks("corruptions"),
    )
    epsilons: list[float] | None = setting(
        None, "Radii for a curve of the accuracy under PGD, such as 2/255,4/255,8/255.", excluded=0
    )
    foolbox_check: bool = setting(
        False, "Repeat PGD with Foolbox, and say where it disagrees with ours.", only_for=with_attacks("pgd")
    )

    @classmethod
    def settle(cls) -> None:
        """Takes the usual attacks and radius of the norm."""
        if FLAGS.attacks is None:
            FLAGS["attacks"].value = list(USUAL[FLAGS.norm])
        if FLAGS.epsilon is None:
            FLAGS["epsilon"].value = EPSILONS[FLAGS.norm]

    def check(self) -> None:
        """Checks names, norm, radii and files of the attacks."""
        said = f"--attacks={','.join(self.names)}"
        unknown = [name for name in self.names if name not in ATTACKS]
        if unknown or not self.names:
            raise BadFlag(f"{said}: expected some of {', '.join(ATTACKS)}, not {', '.join(unknown) or 'an empty list'}")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise BadFlag(f"{said}: expected each attack once, not {twice[0]} {self.names.count(twice[0])} times")
        for name in [*self.names, *(["pgd"] if self.epsilons else [])]:
            if self.norm not in NORMS_OF[name]:
                which = "--epsilons" if name not in self.names else f"--attacks={name}"
                norms = " or ".join(NORMS_OF[name])
                raise BadFlag(f"--norm={self.norm}: expected {norms} with {which}; change the norm, or leave that out")
        if "transfer" in self.names and not self.transfer_from:
            raise BadFlag("--attacks=transfer needs --transfer_from=PATH, the network to find examples on")
        check_radius("epsilon", self.epsilon, self.norm.lower())
        check_radius("epsilons", max(self.epsilons or [0.0]), self.norm.lower())
        if self.corruptions_dir and not Path(self.corruptions_dir).expanduser().is_dir():
            raise BadFlag(f"--corruptions_dir={self.corruptions_dir}: expected a folder with the files of CIFAR-10-C")

    @property
    def names(self) -> list[str]:
        """The attacks, in their order."""
        return self.attacks or []

    @property
    def radius(self) -> float:
        """The radius of the ball."""
        return EPSILONS[self.norm] if self.epsilon is None else self.epsilon

    def source(self, images: trs.data.ImageDataset) -> Callable[..., Any] | None:
        """Loads the network that examples are transferred from, if there is one, and tries it on an image.

        Raises:
            BadFlag: if there is nothing.
            BadInput: if it is damaged, or made for other images or classes.
        """
        if not self.transfer_from:
            return None
        model = networks.load(self.transfer_from, "transfer_from")
        with about("transfer_from"):
            one = np.asarray(images.test_images[:1], np.float32)
            check_image_shape(model, one)
            classes = inference_forward(model)(tf.constant(one)).shape[-1]
            if classes != images.num_classes:
                raise ValueError(f"expected one logit per class, {images.num_classes}. Received: {classes}")
        return model

    def fgsm(self) -> trs.attacks.GradientAttack:
        """Returns the one-step attack."""
        return GRADIENT_ATTACKS[self.norm][0](self.radius)

    def pgd(self) -> trs.attacks.GradientAttack:
        """Returns PGD."""
        return GRADIENT_ATTACKS[self.norm][1](
            self.radius, num_steps=self.pgd_iters, restarts=self.pgd_restarts, seed=Data.read().seed
        )

    def auto_attack(self, model: Callable[..., Any], files: "Files") -> trs.evaluation.AutoAttack:
        """Returns AutoAttack, in its version, with its files."""
        data = Data.read()
        return trs.evaluation.AutoAttack(
            *(model, self.norm, self.radius, self.version),
            seed=data.seed,
            batch_size=data.batch_size,
            log_path=files.path("log_file"),
            state_path=files.path("state_file"),
        )

    def minimum_norm(
        self, name: str, suite: trs.evaluation.RobustnessSuite, tuned_on: int = 64
    ) -> trs.attacks.MinimumNormAttack:
        """Returns an attack that looks for the nearest example; HO-FMN is tuned on the first images."""
        steps: dict[str, Any] = {} if self.min_norm_steps is None else {"num_steps": self.min_norm_steps}
        if name == "hofmn":
            x, y = suite.x[:tuned_on], suite.y[:tuned_on]
            if steps:  # trials take half as many steps, as published
                steps["tuning_steps"] = max(steps["num_steps"] // 2, 1)
            loss = "dlr" if suite.num_classes > 2 else "margin"
            return trs.attacks.HOFMN.tuned(suite.model, x, y, loss=loss, seed=Data.read().seed, **steps)
        kind = MINIMUM_NORM[name]
        return kind(**steps) if len(kind.norms) == 1 else kind(norm=self.norm, **steps)

    def square(self, model: Callable[..., Any]) -> trs.evaluation.AutoAttack:
        """Returns the Square Attack alone."""
        data = Data.read()
        return trs.evaluation.AutoAttack(
            *(model, self.norm, self.radius, "custom", ["square"]),
            seed=data.seed,
            batch_size=data.batch_size,
            verbose=False,
        )


def check_sequence(flag: str, value: str | None) -> None:
    """Checks that what is of AutoAttack's attacks one after the other is not asked of each alone.

    Raises:
        BadFlag: if it is.
    """
    if value and Attacks.read().individual:
        raise BadFlag(
            f"--{flag}={value} needs AutoAttack's attacks to run one after the other; drop it or --individual"
        )


@dataclasses.dataclass
class Results(Settings):
    """Where the numbers go."""

    title = "Files"

    results_file: str | None = setting(None, "Where to write the numbers, as JSON; by default next to the network.")

    def path(self, name: str) -> Path | None:
        """Returns the file that a setting names, if it does."""
        value = getattr(self, name)
        return Path(value).expanduser() if value else None

    def place(self, default: Path, others: Mapping[str, Sequence[Path]] | None = None) -> Path:
        """Checks that every file can be written and none twice, before any work; returns where the numbers go.

        Args:
            default: Where they go if no flag says it.
            others: Name of a flag -> further files that are written for it.

        Raises:
            BadFlag: naming the flag.
        """
        results = self.path("results_file") or default
        taken: dict[Path, str] = {}
        for name, files in {"results_file": [results], **(others or {})}.items():
            for file in files:
                run_directory.check_file(name, file)
                other = taken.setdefault(file.resolve(), name)
                if other != name:
                    raise BadFlag(f"--{name} and --{other} would both write {file}; pass another path for one of them")
        return results


@dataclasses.dataclass
class Files(Results):
    """What else an evaluation writes."""

    _auto_attack = with_attacks("autoattack")

    state_file: str | None = setting(
        None, "File from which an interrupted AutoAttack continues.", only_for=_auto_attack
    )
    log_file: str | None = setting(None, "File that AutoAttack appends its log to.", only_for=_auto_attack)
    save_adversarials: str | None = setting(
        None, "Where to write the examples that AutoAttack found, an .npz file.", only_for=_auto_attack
    )
    report: str | None = setting(None, "Where to write a page with tables, a .md file; its figures lie next to it.")

    def check(self) -> None:
        """Checks places, what the report needs, and what AutoAttack's attacks alone do not have."""
        for name, path in self._named().items():
            run_directory.check_file(name, path)
        check_sequence("state_file", self.state_file)
        check_sequence("save_adversarials", self.save_adversarials)
        if self.report:
            try:
                check_matplotlib()
            except ValueError as error:
                raise BadFlag(f"--report={self.report}: {error}") from error

    def _named(self) -> dict[str, Path]:
        found = {name: self.path(name) for name in ("state_file", "log_file", "save_adversarials", "report")}
        return {name: path for name, path in found.items() if path is not None}

    def written(self) -> dict[str, list[Path]]:
        """Returns the flags of files -> all that is written for them."""
        files = {name: [path] for name, path in self._named().items()}
        if "state_file" in files:
            files["state_file"].append(examples_path(files["state_file"][0]))
        if "report" in files:
            *pages, curve, examples = report_files(files["report"][0])
            files["report"] = [*pages, *figure_files(curve), *figure_files(examples)]
        return files
