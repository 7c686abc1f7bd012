"""Rounds of train, prune and rewind, which find lottery tickets.

A round trains networks under the masks of earlier rounds, from the weights that the strategy chooses, and then prunes
them. Each trial writes each round into a directory of its own, `trial_00/prune_iter_00/`. The next round begins from
this directory alone, so an interrupted run continues like an uninterrupted one. Within a round, checkpoints with the
record so far are written from time to time.

Reference: [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635); rewinding to an early step:
[Frankle et al., 2020](https://arxiv.org/abs/1912.05671).
"""

import csv
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import saving
from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.data.readers import npz
from tf_robust_sparse.data.stacked_batches import stacked_batches
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.checkpoint import read_metadata
from tf_robust_sparse.saving.round_files import (
    complete,
    is_done,
    label_of,
    mark_done,
    read_arrays,
    round_directory,
    write_arrays,
    write_json,
)
from tf_robust_sparse.sparsity import masked_kernels
from tf_robust_sparse.sparsity.iterative_magnitude import PruningRule
from tf_robust_sparse.training.round_plan import TRAINED, LabeledImages, RoundPlan
from tf_robust_sparse.training.stacked_model import NetworkMeasures, NetworkState, StackedRobustModel

COLUMNS = ("batch", "loss", "acc", "adv_acc")
_INIT, _SHUFFLE, _ATTACK, _EVALUATION = range(4)  # purposes of streams of seeds
_MORE = {"train": ("lr",), "test": ("loss_nat", "loss_adv")}  # all other sets have the columns of "test"


class Rounds:
    """Runs the rounds of several trials, which train together.

    Args:
        model: A compiled `StackedRobustModel` of as many members as trials, with
            `steps_per_execution=plan.steps_per_call`, or a divisor of it, which is slower.
        build: Function from a seed to a newly initialized network, like the members of the model.
        rule: Function from kernels and masks of a trained network to the next masks.
        train: Images to train on.
        held_out: Name -> images, measured every `eval_every` steps: `"valid"`, `"test"`, and others except `"train"`.
        plan: Settings of the rounds.
        directory: Where trials are written.
        trials: Numbers of the trials, one per member. Finished rounds are not written again.
        final: Further measurements of each trained network: name -> (images, attack).
        checkpoint_seconds: Smallest time between two checkpoints within a round.
        say: Function that receives lines of progress.

    Raises:
        ValueError: if the model has another number of members, is not compiled, or runs too many steps at once, or if
            sets of images are missing or misnamed.
    """

    def __init__(
        self,
        model: StackedRobustModel,
        build: Callable[[int], keras.Model],
        rule: PruningRule,
        train: LabeledImages,
        held_out: Mapping[str, LabeledImages],
        plan: RoundPlan,
        directory: Path,
        trials: Sequence[int] = (0,),
        final: Mapping[str, tuple[LabeledImages, GradientAttack]] | None = None,
        checkpoint_seconds: float = 60.0,
        say: Callable[[str], None] = print,
    ) -> None:
        if model.members != len(trials):
            raise ValueError(
                f"`model` trains {model.members} networks at once; pass as many trials. Received: trials={list(trials)}"
            )
        if not model.compiled:
            raise ValueError(
                "`model` must be compiled; call model.compile(optimizer, steps_per_execution=plan.steps_per_call). "
                "Received: a model that is not compiled"
            )
        if plan.steps_per_call % model.steps_per_execution:
            raise ValueError(
                f"`model` must not run past a measurement in one call; compile it with "
                f"steps_per_execution={plan.steps_per_call}, which is plan.steps_per_call, or a divisor of it. "
                f"Received: steps_per_execution={model.steps_per_execution}"
            )
        if not {"valid", "test"} <= set(held_out) or "train" in held_out:
            raise ValueError(
                '`held_out` maps "valid", "test" and further names to images; "train" is reserved for the training '
                f"images. Received: {', '.join(map(repr, held_out)) or 'nothing'}"
            )
        self.model = model
        self.plan = plan
        self.directory = user_path(directory)
        self.trials = tuple(trials)
        self._build = build
        self._rule = rule
        self._train = train
        self._final = dict(final or {})
        self._checkpoint_seconds = checkpoint_seconds
        self._say = say
        self._held_out = {name: _on_device(images) for name, images in held_out.items()}

    def run(self) -> None:
        """Runs every round that is not finished.

        Raises:
            ValueError: if the directory holds rounds of another plan; only `prune_iters` may differ.
            FloatingPointError: if a loss is not finite.
        """
        complete(self.directory)
        self._check_plan()
        self.model.train_on(self._train.x, self._train.y)
        for number in range(self.plan.rounds):
            if not all(is_done(self.place(trial, number)) for trial in self.trials):
                self._round(number)

    def place(self, trial: int, number: int) -> Path:
        """Returns the directory of a round of a trial."""
        return round_directory(self.directory, trial, number)

    def _check_plan(self) -> None:
        places = [self.place(trial, number) for trial in self.trials for number in range(self.plan.rounds)]
        for place in filter(is_done, places):
            before = json.loads((place / "summary.json").read_text()).get("plan")
            self._compare(before, place)
        if self._checkpoint_path().is_file():
            self._compare(read_metadata(self._checkpoint_path()).get("plan"), self._checkpoint_path())

    def _compare(self, before: dict[str, Any] | None, place: Path) -> None:
        for name, value in _recorded(self.plan).items():
            if before is not None and before.get(name) != value:
                raise ValueError(
                    f"`directory` must be new or hold rounds of the same plan; pass another directory, or "
                    f"{name}={before.get(name)!r}, which {place} was made with. Received: {name}={value!r}"
                )

    def _open(self, number: int) -> list[tuple[int, int]]:
        """Returns (member, trial) of all trials that have not finished the round."""
        pairs = enumerate(self.trials)
        return [(member, trial) for member, trial in pairs if not is_done(self.place(trial, number))]

    def _round(self, number: int) -> None:
        plan, model = self.plan, self.model
        masks = [self._masks(trial, number) for trial in self.trials]
        begun = [self._initial_state(trial, number) for trial in self.trials]
        model.begin(begun, masks, self._streams(number, _ATTACK))
        record = _Record(self, number)
        path = self._checkpoint_path()
        found = read_metadata(path) if path.is_file() else {}
        if found.get("round") == number and found.get("trials") == list(self.trials):
            saving.load_checkpoint(path, model)
            model.set_seeds(self._streams(number, _ATTACK))
            model.mask_slots()
            record.step, record.rows, record.seconds = found["step"], found["rows"], found["seconds"]
            self._say(f"round {number}: goes on after step {record.step} of {plan.train_iters}")
        else:
            for member, trial in record.open:
                _write_state(self.place(trial, number), "init", begun[member])
                write_arrays(self.place(trial, number) / "masks", masks[member], np.float32)
            left, entries = masked_kernels.remaining(masks[0])
            self._say(f"round {number}: {left} / {entries} weights, {label_of(left, entries)} % remain")
            record.measure()
        if record.step < plan.train_iters:
            batches = stacked_batches(len(self._train.y), plan.batch_size, self._streams(number, _SHUFFLE), record.step)
            steps = plan.steps_per_call
            model.fit(
                batches,
                initial_epoch=record.step // steps,
                epochs=plan.train_iters // steps,
                steps_per_epoch=steps,
                callbacks=[record],
                verbose=0,
            )
        self._finish(number, masks, record)

    def _finish(self, number: int, masks: list[dict[str, np.ndarray]], record: "_Record") -> None:
        states = self.model.states()
        final = {
            name: self.model.measure(*_on_device(images)[:2], self._streams(number, _EVALUATION), 0, 0.0, attack)
            for name, (images, attack) in self._final.items()
        }
        record.write()
        for member, trial in record.open:
            place = self.place(trial, number)
            _write_state(place, "post", states[member])
            write_arrays(place / "next_masks", self._rule(states[member].kernels, masks[member]), bool)
            more = {name: measures[member]._asdict() for name, measures in final.items()}
            about = summary(record.rows[member], masks[member], record.seconds, more)
            write_json(place / "summary.json", {**about, "plan": _recorded(self.plan)})
        mark_done(self.directory, [trial for _, trial in record.open], number)
        self._checkpoint_path().unlink(missing_ok=True)
        for member, trial in record.open:
            last = record.rows[member]["test"][-1]
            self._say(
                f"round {number}, trial {trial}: test loss {last['loss']:.4f}, accuracy {100 * last['acc']:.2f} %, "
                f"under attack {100 * last['adv_acc']:.2f} %, {record.seconds:.0f} s"
            )

    def _initial_state(self, trial: int, number: int) -> NetworkState:
        """Returns the variables that a round begins with."""
        strategy, rewind = self.plan.strategy, self.plan.rewind_step
        if number == 0 or strategy == "reinit_rand":
            return network_state(self._build(self.plan.stream(trial, number, _INIT)))
        if strategy == "reinit_none":
            return read_state(self.place(trial, number - 1), "post")
        return read_state(self.place(trial, 0), {0: "init", TRAINED: "post"}.get(rewind, "rewind"))

    def _masks(self, trial: int, number: int) -> dict[str, np.ndarray]:
        """Returns the masks of a round: those that the rule made at the end of the previous round.

        Raises:
            RuntimeError: if the rule brings an entry back.
        """
        if number == 0:
            return {name: np.ones(kernel.shape, bool) for name, kernel in self._shapes().items()}
        before = self.place(trial, number - 1)
        masks = {name: mask != 0 for name, mask in read_arrays(before / "masks").items()}
        after = {name: mask != 0 for name, mask in read_arrays(before / "next_masks").items()}
        for name, mask in after.items():
            if (mask & ~masks[name]).any():
                raise RuntimeError(f"The pruning rule brought pruned entries of {name} back in round {number}.")
        return after

    def _shapes(self) -> dict[str, np.ndarray]:
        return self.model.states()[0].kernels

    def _streams(self, number: int, purpose: int) -> list[int]:
        return [self.plan.stream(trial, number, purpose) for trial in self.trials]

    def _checkpoint_path(self) -> Path:
        name = "-".join(f"{trial:02d}" for trial in (self.trials[0], self.trials[-1]))
        return self.directory / f"trials_{name}.weights.h5"


class _Record(keras.callbacks.Callback):
    """Measures and keeps the record of one round, and writes checkpoints."""

    def __init__(self, rounds: Rounds, number: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.number = number
        self.open = rounds._open(number)
        self.step = 0
        self.seconds = 0.0
        self.rows: list[dict[str, list[dict[str, float]]]] = [
            {name: [] for name in ("train", *rounds._held_out)} for _ in rounds.trials
        ]
        self._begun = self._said = self._written = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Measures, reports and writes a checkpoint, each when it is due."""
        plan = self.rounds.plan
        self.step = (epoch + 1) * plan.steps_per_call
        if self.number == 0 and self.step == plan.rewind_step:
            states = self.rounds.model.states()
            for member, trial in self.open:
                _write_state(self.rounds.place(trial, 0), "rewind", states[member])
        if not plan.is_measured(self.step):
            return
        self.measure()
        now = time.perf_counter()
        if now - self._said > 30 and self.step < plan.train_iters:
            self._said = now
            accuracy = np.mean([rows["test"][-1]["acc"] for rows in self.rows])
            attacked = np.mean([rows["test"][-1]["adv_acc"] for rows in self.rows])
            self.rounds._say(
                f"round {self.number}, step {self.step} of {plan.train_iters}: test accuracy {100 * accuracy:.2f} %, "
                f"under attack {100 * attacked:.2f} %"
            )
        if now - self._written > self.rounds._checkpoint_seconds and self.step < plan.train_iters:
            self.write()
            metadata = {"round": self.number, "step": self.step, "rows": self.rows, "seconds": self.seconds}
            metadata |= {"trials": list(self.rounds.trials), "plan": _recorded(self.rounds.plan)}
            saving.save_checkpoint(self.rounds._checkpoint_path(), self.rounds.model, metadata)
            self._written = now

    def measure(self) -> None:
        """Adds a row to the record of every trial."""
        rounds, model = self.rounds, self.rounds.model
        trained = model.training_record()
        now = time.perf_counter()
        self.seconds, self._begun = self.seconds + now - self._begun, now
        rate = float(np.array(model.optimizer.learning_rate))
        for member, (loss, accuracy, attacked) in enumerate(trained):
            if self.step and not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of trial {rounds.trials[member]} is {loss} in round {self.number} before step "
                    f"{self.step}; try a lower learning rate"
                )
            row = dict(zip(COLUMNS, (self.step, loss, accuracy, attacked), strict=True))
            self.rows[member]["train"].append({**row, "lr": rate})
        for place, (name, images) in enumerate(rounds._held_out.items()):
            seeds = rounds._streams(self.number, _EVALUATION + 1 + place)
            for member, found in enumerate(model.measure(images.x, images.y, seeds, self.step, images.label_smoothing)):
                self.rows[member][name].append(_row(self.step, found))

    def write(self) -> None:
        """Writes the record of every trial as CSV files."""
        for member, trial in self.open:
            for name, lines in self.rows[member].items():
                with (
                    replace_file(self.rounds.place(trial, self.number) / f"{name}.csv") as path,
                    path.open("w", newline="") as file,
                ):
                    writer = csv.DictWriter(file, [*COLUMNS, *_MORE.get(name, _MORE["test"])])
                    writer.writeheader()
                    writer.writerows(lines)


def network_state(network: keras.Model) -> NetworkState:
    """Returns the variables of a network, without its masks."""
    kernels = masked_kernels.get_kernels(network)
    return NetworkState(kernels, {v.path: np.array(v) for v in masked_kernels.other_variables(network)})


def read_state(place: Path, name: str) -> NetworkState:
    """Returns the variables that a round wrote: `"init"`, `"post"` or `"rewind"`."""
    path = place / f"{name}_others.npz"
    others = npz.read_arrays(path) if path.is_file() else {}
    return NetworkState(read_arrays(place / f"{name}_kernels"), others)


def summary(
    rows: Mapping[str, list[dict[str, float]]], masks: Mapping[str, np.ndarray], seconds: float, final: dict[str, Any]
) -> dict[str, Any]:
    """Returns the summary of a round: its sparsity, its final row, and the row of the smallest validation loss."""
    left, entries = masked_kernels.remaining(masks)
    least = min(range(len(rows["valid"])), key=lambda place: rows["valid"][place]["loss"])
    return {
        "remaining": left,
        "entries": entries,
        "label": label_of(left, entries),
        "layers": {name: int(np.count_nonzero(mask)) for name, mask in masks.items()},
        "final": {name: lines[-1] for name, lines in rows.items()},
        "early_stop": {
            "batch": rows["valid"][least]["batch"],
            **{name: lines[least] for name, lines in rows.items() if name != "train"},
        },
        "final_measures": final,
        "seconds": seconds,
    }


def _row(step: int, found: NetworkMeasures) -> dict[str, float]:
    row = dict(zip(COLUMNS, (step, found.loss, found.accuracy, found.adversarial_accuracy), strict=True))
    return {**row, "loss_nat": found.clean_loss, "loss_adv": found.adversarial_loss}


def _on_device(images: LabeledImages) -> LabeledImages:
    return LabeledImages(tf.constant(images.x), tf.constant(images.y, tf.int64), images.label_smoothing)


def _write_state(place: Path, name: str, state: NetworkState) -> None:
    write_arrays(place / f"{name}_kernels", state.kernels, np.float32)
    if state.others:
        with replace_file(place / f"{name}_others.npz") as path:
            np.savez(path, **state.others)  # type: ignore[arg-type]


def _recorded(plan: RoundPlan) -> dict[str, Any]:
    """Returns the settings that identify a plan; the number of prunings does not."""
    return {name: value for name, value in dataclasses.asdict(plan).items() if name != "prune_iters"}
