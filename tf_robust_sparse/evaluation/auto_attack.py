"""AutoAttack: the ensemble of parameter-free attacks that robust networks are compared by."""

import functools
import numbers
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks.staged_attack import StagedAttack
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.attack_versions import VERSIONS, named_attack
from tf_robust_sparse.evaluation.clean import check_finite
from tf_robust_sparse.evaluation.compaction import CompactedAttack
from tf_robust_sparse.evaluation.ensemble_run import EnsembleRun, perturbations
from tf_robust_sparse.evaluation.examples import check_image_shape, collect_examples, fixed_batch_size
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.evaluation.survivors import padded_batches
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.paths import user_path


class AutoAttack:
    """Measures robust accuracy under an ensemble of attacks without parameters to tune.

    Each attack runs on the images that the attacks before it did not break. An image counts as robust if it is
    classified correctly and no attack changes that. Every image has its own seeds, so the result depends neither on the
    batch size nor on an interruption.

    ```python
    results = trs.evaluation.AutoAttack(network, "Linf", epsilon=8 / 255).run_standard_evaluation(x, y)
    results["robust_accuracy"]
    ```

    Args:
        model: Keras model, or any callable from images in [0, 1] to logits, such as `load_saved_model(path)`.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        epsilon: Radius of the ball in the norm, in pixels of [0, 1], above 0.
        version: `"standard"`, `"plus"` (more restarts and losses), `"rand"` (for randomized networks: gradients are
            averaged over 20 passes), `"malt"` (APGD alone, toward the three nearest classes; not of the authors), or
            `"custom"`.
        attacks: For `"custom"` the attacks to run, in order: names (`"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`,
            `"fab-t"`, `"square"`, with the settings of the standard version), or attack objects of this norm.
        seed: Integer that fixes all random draws.
        batch_size: Number of images attacked at a time; `None` for 250, or the fixed batch size of a SavedModel.
        log_path: File that log lines are appended to, or `None`.
        state_path: JSON file from which an interrupted run continues, or `None`; an .npz file of the same name holds
            the adversarial examples.
        verbose: Whether to print log lines and a progress bar.
        data_format: `"channels_last"`, or `"channels_first"` if images and network have channels first.

    Raises:
        ValueError: if an argument is out of its range or arguments contradict each other.

    Reference: [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), section 4.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        norm: str = "Linf",
        epsilon: float = 8 / 255,
        version: str = "standard",
        attacks: Sequence[str | StagedAttack] = (),
        seed: int = 0,
        batch_size: int | None = None,
        log_path: str | Path | None = None,
        state_path: str | Path | None = None,
        verbose: bool = True,
        data_format: str = "channels_last",
    ) -> None:
        if version not in (*VERSIONS, "custom"):
            raise ValueError(f"`version` is one of {', '.join(VERSIONS)}, custom. Received: version={version!r}")
        if (version == "custom") != bool(attacks):
            raise ValueError(
                "`attacks` belongs to version='custom': pass both or neither. "
                f"Received: version={version!r}, attacks={list(attacks)!r}"
            )
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError(f"`data_format` is channels_last or channels_first. Received: data_format={data_format!r}")
        if batch_size is not None and (
            not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool) or batch_size < 1
        ):
            raise ValueError(f"`batch_size` is an integer, at least 1, or None. Received: batch_size={batch_size!r}")
        self.model = model
        self.norm = norm
        self.epsilon = float(epsilon) if not isinstance(epsilon, str) else epsilon
        self.version = version
        self.seed = seed
        self.batch_size = batch_size
        self.attacks = [
            named_attack(attack, version, norm, self.epsilon, seed) if isinstance(attack, str) else attack
            for attack in attacks or VERSIONS[version]
        ]
        for attack in self.attacks:
            if not isinstance(attack, StagedAttack) or attack.norm != norm:
                raise ValueError(f"`attacks` must be names or attacks of the {norm} norm. Received: attack={attack!r}")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise ValueError(f"`attacks` must hold each attack once. Received: attacks={names}")
        self.log_path = None if log_path is None else user_path(log_path)
        self.state_path = None if state_path is None else user_path(state_path)
        self.verbose = bool(verbose)
        self.data_format = data_format
        self.compiled: dict[str, CompactedAttack] = {}
        self._logits_of: dict[int, Callable[[tf.Tensor], tf.Tensor]] = {}  # by batch size
        self._forward = inference_forward(model)

    def check(self, x: Any, y: Any) -> None:
        """Checks images, network and state file as `run_standard_evaluation` does, without an attack.

        Raises:
            ValueError: as `run_standard_evaluation` does before its first attack.
        """
        self._restore(self._prepare(x, y))

    def clean_accuracy(self, x: Any, y: Any) -> float:
        """Returns the share of clean images that are classified correctly."""
        return self._prepare(x, y).clean_accuracy

    def run_standard_evaluation(
        self, x: Any, y: Any, callback: Callable[[str, int], None] | None = None
    ) -> dict[str, Any]:
        """Attacks each image until one attack succeeds.

        Args:
            x: `(images, height, width, channels)`, floating, in [0, 1].
            y: `(images,)`, integer labels.
            callback: Called after each batch with the name of the attack and the number of robust images.

        Returns:
            Plain values and three arrays: `clean_accuracy`, `robust_accuracy`, `attacks` (in order, each with its
            settings, `robust_accuracy` after it, `broken`, `seconds`, `iterations_per_image`,
            `gradient_passes_per_image`), `flags`, and `x_adv`, `y_adv`, `broken_by` (number of the attack, -1 for
            robust images, -2 for images that were misclassified from the start).

        Raises:
            ValueError: if images, labels or logits are malformed, or the state file is damaged or belongs to another
                run.
        """
        run = self._prepare(x, y)
        self._restore(run)
        if self.version != "custom":
            self._log(f"setting parameters for {self.version} version")
        self._log(f"using {self.version} version including {', '.join(attack.name for attack in self.attacks)}.")
        self._log(f"initial accuracy: {run.clean_accuracy:.2%}")
        if run.done or run.next_row:
            self._log(f"restored after {', '.join(run.done) or 'no attack'}; robust accuracy {run.robust.mean():.2%}")
        begin = time.perf_counter()
        try:
            for number, attack in enumerate(self.attacks):
                if attack.name in run.done:
                    continue
                if not run.robust.any():
                    break
                self._attack(run, number, attack, begin, callback)
        except BaseException:
            self._save(run, force=True)
            raise
        return self._finish(run)

    def run_standard_evaluation_individual(
        self, x: Any, y: Any, callback: Callable[[str, dict[str, Any]], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Runs every attack alone on all images.

        Args:
            x, y: See `run_standard_evaluation`.
            callback: Called after each attack with its name and its result.

        Returns:
            Name of the attack -> result of `run_standard_evaluation` for it.
        """
        results = {}
        for attack in self.attacks:
            alone = AutoAttack(
                self.model,
                self.norm,
                self.epsilon,
                "custom",
                [attack],
                self.seed,
                self.batch_size,
                verbose=False,
                data_format=self.data_format,
            )
            begin = time.perf_counter()
            results[attack.name] = result = alone.run_standard_evaluation(x, y)
            self._log(
                f"robust accuracy by {attack.name.upper()} \t {result['robust_accuracy']:.2%} \t "
                f"(time attack: {time.perf_counter() - begin:.1f} s)"
            )
            if callback is not None:
                callback(attack.name, result)
        return results

    def _prepare(self, x: Any, y: Any) -> EnsembleRun:
        """Checks all that can be checked before the first attack."""
        checked_images(x, (None, None, None))
        x, y, _ = collect_examples((x, y))
        check_image_shape(self.model, x)
        if self.data_format == "channels_first":
            x = np.ascontiguousarray(np.moveaxis(x, 1, 3))
        size = fixed_batch_size(self.model, self.batch_size or 250, len(x))
        self._logits_of.clear()  # the network may have changed since the last evaluation
        logits = self._logits(x, size)
        check_finite(np.isfinite(logits).all(axis=-1), "the clean images")
        classes = logits.shape[-1]
        if classes < 2:
            raise ValueError(f"The network must return one logit per class, at least two. Received: {classes} logit")
        checked_labels(y, classes=classes, why=f", because the network has {classes} logits")
        flags = safety.probabilities(logits)
        flags += safety.wrong_pixels(lambda images: self._logits(images, size), x, y, logits)
        targets = {attack.name: getattr(attack, "num_targets", 0) for attack in self.attacks}
        flags += safety.few_classes(classes, targets)
        flags += safety.version_of_another_norm(self.version, self.norm)
        randomized = safety.randomized(lambda images: self._logits(images, size), x[:size])
        if self.version != "rand":
            flags += randomized
        # The logits of a randomized network always change, so this test would say nothing about its batches.
        if not randomized and not isinstance(getattr(self.model, "input_shape", (None,))[0], int):
            flags += safety.depends_on_batch(lambda images: self._logits(images, len(images)), x[:size])
        return EnsembleRun(self.model, self.attacks, x, y, logits, size, flags, bool(randomized))

    def _attack(
        self,
        run: EnsembleRun,
        number: int,
        attack: StagedAttack,
        begin: float,
        callback: Callable[[str, int], None] | None,
    ) -> None:
        attack_begin = time.perf_counter()
        seconds_before = run.seconds.get(attack.name, 0.0)
        iterations_before = run.iterations.get(attack.name, 0)
        passes_before = run.gradient_passes.get(attack.name, 0)
        forward = self._static_forward(run.classes)
        compacted = CompactedAttack(attack, forward, self.model, run.classes, run.size, side_by_side=not run.randomized)
        self.compiled[attack.name] = compacted
        rows = np.flatnonzero(run.robust)
        rows = rows[rows >= run.next_row]
        lowest = min([run.clean_accuracy, *run.after.values()])
        with Progress(attack.name, len(rows), self.verbose, leaves=False) as bar:  # a log line reports the end
            for first in range(0, len(rows), run.size):
                part = rows[first : first + run.size]
                broken, x_adv = compacted(run.x[part], run.y[part], self._seeds(attack, part))
                if broken.any():
                    answers = self._logits(x_adv[broken], run.size)
                    check_finite(np.isfinite(answers).all(axis=-1), f"images attacked by {attack.name}")
                    wrong = answers.argmax(-1) != run.y[part[broken]]
                    run.count(part[broken][wrong], number, x_adv[broken][wrong], answers[wrong].argmax(-1))
                run.next_row = int(part[-1]) + 1
                run.seconds[attack.name] = seconds_before + time.perf_counter() - attack_begin
                run.iterations[attack.name] = iterations_before + compacted.iterations
                passes = (compacted.iterations + compacted.starts) * attack.gradient_passes()
                run.gradient_passes[attack.name] = passes_before + passes if attack.uses_gradients else 0
                bar.advance(len(part), robust=float(run.robust.mean()))
                self._log(
                    f"{attack.name} - {first // run.size + 1}/{-(-len(rows) // run.size)} - {int(broken.sum())} out of "
                    f"{len(part)} successfully perturbed",
                    to_screen=False,
                )
                self._save(run)
                if callback is not None:
                    callback(attack.name, int(run.robust.sum()))
        run.done.append(attack.name)
        run.next_row = 0
        run.after[attack.name] = float(run.robust.mean())
        if attack.name.startswith("apgd") and attack.name != "apgd-ce":
            has_black_box = not all(each.uses_gradients for each in self.attacks)
            run.flags += safety.zero_gradients(attack.name, compacted.without_gradient, len(rows), has_black_box)
        if not attack.uses_gradients and number:
            run.flags += safety.black_box_better(attack.name, lowest, float(run.robust.mean()))
        self._save(run, force=True)
        self._log(
            f"robust accuracy after {attack.name.upper()}: {run.robust.mean():.2%} "
            f"(total time {time.perf_counter() - begin:.1f} s)"
        )

    def _finish(self, run: EnsembleRun) -> dict[str, Any]:
        """Counts again, in one pass with another batch size, and returns the results."""
        if not run.randomized:  # otherwise each count differs
            fixed = isinstance(getattr(self.model, "input_shape", (None,))[0], int)
            size = run.size if fixed else max(run.size // 2, 1)
            again = self._logits(run.x_adv, size).argmax(-1) == run.y
            run.flags += safety.recounted(float(run.robust.mean()), float(again.mean()), size)
        self._log(f"note: {safety.DYNAMIC_DEFENSE}")
        length = perturbations(run.x_adv, run.x, self.norm)
        self._log(
            f"max {self.norm} perturbation: {length.max():.5f}, nan in tensor: {int(np.isnan(run.x_adv).sum())}, "
            f"max: {run.x_adv.max():.5f}, min: {run.x_adv.min():.5f}"
        )
        self._log(f"robust accuracy: {run.robust.mean():.2%}")
        for flag in run.flags:
            self._log(f"warning: {flag.sentence}")
        channels_first = self.data_format == "channels_first"
        robust = run.clean_accuracy
        attacks = {}
        for number, attack in enumerate(self.attacks):
            robust = run.after.get(attack.name, robust)
            attacks[attack.name] = {
                **attack.describe(),
                "robust_accuracy": robust,
                "broken": int((run.broken_by == number).sum()),
                "seconds": run.seconds.get(attack.name, 0.0),
                "iterations_per_image": run.iterations.get(attack.name, 0) / len(run.x),
                "gradient_passes_per_image": run.gradient_passes.get(attack.name, 0) / len(run.x),
            }
        return {
            "norm": self.norm,
            "epsilon": self.epsilon,
            "version": self.version,
            "seed": self.seed,
            "images": len(run.x),
            "batch_size": run.size,
            "clean_accuracy": run.clean_accuracy,
            "robust_accuracy": float(run.robust.mean()),
            "attacks": attacks,
            "largest_perturbation": float(length.max()),
            "flags": [flag.sentence for flag in run.flags],
            "flag_names": [flag.name for flag in run.flags],
            "x_adv": np.moveaxis(run.x_adv, 3, 1) if channels_first else run.x_adv,
            "y_adv": run.y_adv,
            "broken_by": run.broken_by,
        }

    def _seeds(self, attack: StagedAttack, rows: np.ndarray) -> Callable[[int], np.ndarray]:
        """Returns the seeds of the images in `rows` by restart; they do not depend on the other attacks."""
        of_attack = fold_in(attack.seed, zlib.crc32(attack.name.encode()))
        images = tf.constant(rows, tf.int64)
        return functools.cache(lambda restart: _seeds_of(of_attack, tf.constant(restart), images).numpy())

    def _static_forward(self, classes: int) -> Callable[[tf.Tensor], tf.Tensor]:
        channels_first = self.data_format == "channels_first"

        def forward(x: tf.Tensor) -> tf.Tensor:
            logits = self._forward(tf.transpose(x, (0, 3, 1, 2)) if channels_first else x)
            return tf.ensure_shape(logits, (None, classes)) if classes else logits

        return forward

    def _compiled_logits(self, x: np.ndarray, size: int) -> Callable[[tf.Tensor], tf.Tensor]:
        forward = self._static_forward(0)

        @tf.function(input_signature=[tf.TensorSpec((size, *x.shape[1:]), tf.float32)], autograph=False)
        def logits(images: tf.Tensor) -> tf.Tensor:
            with cached_for_inference(self.model):
                return forward(images)

        return logits

    def _logits(self, x: np.ndarray, size: int) -> np.ndarray:
        """Returns the logits of any number of images, in padded batches of one size."""
        if size not in self._logits_of:
            self._logits_of[size] = self._compiled_logits(x, size)
        compiled = self._logits_of[size]
        return np.concatenate(
            [compiled(x[rows]).numpy()[:count] for rows, count in padded_batches(np.arange(len(x)), size)]
        )

    def _log(self, line: str, to_screen: bool = True) -> None:
        if self.verbose and to_screen:
            print(line, flush=True)
        if self.log_path is not None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("a") as file:
                file.write(line + "\n")

    def _save(self, run: EnsembleRun, force: bool = False) -> None:
        if self.state_path is not None and (force or run.save_is_due()):
            run.save(self.state_path, self.version)

    def _restore(self, run: EnsembleRun) -> None:
        if self.state_path is not None and self.state_path.exists():
            run.restore(self.state_path, self.version, lambda images: self._logits(images, run.size))


@tf.function(
    input_signature=[tf.TensorSpec((2,), tf.int64), tf.TensorSpec((), tf.int32), tf.TensorSpec((None,), tf.int64)],
    autograph=False,
)
def _seeds_of(seed: tf.Tensor, restart: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Returns the seeds of images, by their numbers: `(images, 2)`, int64. Compiled, because eager calls are slow."""
    return fold_in(fold_in(seed, restart), images)
