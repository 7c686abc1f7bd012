"""In which rounds, trials and processes lottery tickets are trained, and on which images."""

import dataclasses
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import processes
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections.lottery import DENSE, Experiment, Images, Variants
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.settings import Settings, like, setting
from tf_robust_sparse.models.stacked import can_be_stacked
from tf_robust_sparse.training.round_plan import STRATEGIES

FLAGS = flags.FLAGS


class Split(NamedTuple):
    """Images to train on, those that are measured during training by name, and all test images."""

    train: trs.training.LabeledImages
    held_out: dict[str, trs.training.LabeledImages]
    test: trs.training.LabeledImages


@dataclasses.dataclass
class Rounds(Settings):
    """How often what is trained, pruned and rewound."""

    title = "Rounds"

    experiment: str = setting(
        "reinit_orig",
        "Where a round begins: at the first weights, at new ones, or where the last one ended.",
        choices=STRATEGIES,
        identity=True,
    )
    trials: int = setting(10, "Independent repetitions.", lower=1)
    train_iters: int = setting(50_000, "Optimization steps per round.", lower=1, identity=True)
    prune_iters: int = setting(20, "Number of prunings, one less than rounds.")
    eval_every: int = setting(500, "Steps between two measurements.", lower=1, identity=True)
    valid_size: int = setting(
        10_000,
        "Number of training images held out, the first ones; of fewer than 40000 images by default a fifth.",
        lower=1,
        identity=True,
    )
    processes: int | None = setting(
        None, "Processes of one thread that share the trials; by default many for small networks.", lower=1
    )
    stacked: int | None = setting(None, "Trials a process trains together; by default all it has, if it can.", lower=1)
    only_trials: list[str] | None = setting(
        None, "Internal: the trials of one of the processes that this command starts.", recorded=False
    )
    eval_subset: int | None = setting(
        None,
        "Measure during training on the first N held-out and test images; at the end on all.",
        lower=1,
        identity=True,
    )
    jit: bool = setting(False, "Compile the step with XLA; slower on CPUs.", identity=True)
    resume: bool = setting(False, "Go on with what is there.", recorded=False)
    checkpoint_seconds: float = setting(60.0, "Least time between two checkpoints within a round.")

    @classmethod
    def settle(cls) -> None:
        """Without pruning there is none, as it is recorded."""
        prune_iters = FLAGS["prune_iters"]
        if FLAGS.experiment == "no_pruning":
            if prune_iters.present and prune_iters.value:
                raise BadFlag(f"--experiment=no_pruning prunes nothing; leave out --prune_iters={prune_iters.value}")
            prune_iters.value = 0

    def check(self) -> None:
        """Checks how rounds, trials and devices go together."""
        strategy = Machines.read().strategy
        if strategy == "multi_worker":
            raise BadFlag(
                "--strategy=multi_worker: expected none or mirrored, because trials are split among the processes of "
                "one machine; on several machines run other experiments"
            )
        if Experiment.read().force and self.resume:
            raise BadFlag("--resume goes on with a run and --force removes it; pass one of them")
        if (self.stacked or 1) > 1 and strategy != "none":
            raise BadFlag(
                f"--stacked={self.stacked} needs one device, and --strategy={strategy} has several; pass one of them"
            )
        self.chosen_trials()
        self.plan()

    def plan(self) -> trs.training.RoundPlan:
        """Returns the plan of all rounds."""
        images = Images.read()
        try:
            return trs.training.RoundPlan(
                train_iters=self.train_iters,
                prune_iters=self.prune_iters,
                eval_every=self.eval_every,
                batch_size=images.batch_size,
                strategy=self.experiment,
                rewind_step=Variants.read().rewind(),
                seed=images.seed,
            )
        except ValueError as error:
            raise BadFlag(str(error).replace("`", "--", 1).replace("`", "", 1)) from error

    def chosen_trials(self) -> list[int]:
        """Returns the trials of --only_trials, or all.

        Raises:
            BadFlag: if they are not trials of this run.
        """
        if self.only_trials is None:
            return list(range(self.trials))
        numbers = [int(word) if word.isascii() and word.isdigit() else -1 for word in self.only_trials]
        if not numbers or len(set(numbers)) < len(numbers) or any(not 0 <= each < self.trials for each in numbers):
            raise BadFlag(
                f"--only_trials={','.join(self.only_trials)}: expected different trials from 0 to {self.trials - 1}; "
                "this command passes it to processes that it starts, leave it out"
            )
        return numbers

    def parts(self, images: trs.data.ImageDataset) -> tuple[list[list[int]], bool]:
        """Returns the trials that are trained together, in groups, and whether each group has a process of its own.

        By default each trial of a small network has one, with up to four per core.

        Raises:
            BadFlag: if more are to be trained together than the network allows.
        """
        trials, cores = self.chosen_trials(), os.cpu_count() or 1
        stackable = Machines.read().is_one_device and can_be_stacked(Experiment.read().network(images, 0))
        if (self.stacked or 1) > 1 and not stackable:
            raise BadFlag(
                f"--stacked={self.stacked}: only masked dense layers without biases, --model={DENSE}, are trained "
                f"together; leave it out with --model={Experiment.read().model}"
            )
        many = 4 * cores if stackable and cores > 1 and not tf.config.list_physical_devices("GPU") else 1
        number = 1 if self.only_trials else min(self.processes or many, len(trials))
        if number > 1:
            return processes.groups(trials, number), True
        together = min(self.stacked or len(trials), len(trials)) if stackable else 1
        return processes.groups(trials, -(-len(trials) // together)), False

    def split(self, images: trs.data.ImageDataset) -> Split:
        """Returns the images by what they are for; the first training images are held out."""
        x, y, number = images.train_images, images.train_labels, self.valid_size
        if number == Rounds.valid_size and number > len(y) // 4:
            number = len(y) // 5
        if number >= len(y):
            raise BadFlag(f"--valid_size={number}: expected fewer than the {len(y)} training images")
        if not isinstance(x, np.ndarray) or not isinstance(images.test_images, np.ndarray):
            raise BadFlag(f"--data={Images.read().data} is read from files; pass images that fit into memory")
        variants = Variants.read()
        some = min(self.eval_subset or number, number)
        smoothing = variants.label_smoothing if variants.smooth_valid_labels else 0.0
        test = trs.training.LabeledImages(images.test_images, images.test_labels)
        part = trs.training.LabeledImages(test.x[: self.eval_subset], test.y[: self.eval_subset])
        return Split(
            trs.training.LabeledImages(x[number:], y[number:]),
            {"valid": trs.training.LabeledImages(x[:some], y[:some], smoothing), "test": part},
            test,
        )


@dataclasses.dataclass
class Devices(Machines):
    """Devices that train; others make another experiment."""

    strategy: str = like(Machines, "strategy", identity=True)
    num_replicas: int | None = like(Machines, "num_replicas", identity=True)
    devices: str | None = setting(None, "GPUs that may be used, such as 0,1,2,3; by default all.", recorded=False)
