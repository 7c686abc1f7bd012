"""Several attacks on the same images, and which images withstand all of them."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.attacks import GradientAttack, MinimumNormAttack, cross_entropy
from tf_robust_sparse.attacks.losses import log_odds
from tf_robust_sparse.attacks.staged_attack import StagedAttack
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.auto_attack import AutoAttack
from tf_robust_sparse.evaluation.clean import clean_answers
from tf_robust_sparse.evaluation.examples import check_image_shape, collect_examples, fixed_batch_size
from tf_robust_sparse.evaluation.foolbox_check import foolbox_check
from tf_robust_sparse.evaluation.minimum_norms import distances_as_results, nearest_examples
from tf_robust_sparse.evaluation.robust_accuracy import masked_gradients, robust_mask
from tf_robust_sparse.evaluation.transfer import transfer_attack
from tf_robust_sparse.layers.forward import inference_forward

BY_STRENGTH = ("clean", "fgsm", "pgd", "autoattack")


class RobustnessSuite:
    """Runs several attacks, and records for each image which of them it withstands.

    Each attack runs alone on all images that are classified correctly, so that its accuracy compares with published
    ones. Restarts of an attack run on the images that it has not broken yet. An image is robust only if it withstands
    every attack that was run.

    Args:
        model: Keras model, or any callable from images to logits, such as `load_saved_model(path)`.
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or a tuple of arrays; images `(batch, height, width, channels)`,
            floating, in `[0, 1]`; labels `(batch,)`, integers.
        batch_size: Number of images attacked at a time; `None` for the batch size of the data set.
        progress: Whether to show bars on standard error.

    Attributes:
        x: `(images, height, width, channels)`, float32.
        y: `(images,)`, int64.
        correct: `(images,)`, bool: which clean images are classified correctly.
        standing: Attack -> `(images,)`, bool: which images withstand it.
        attacks: Attack -> plain values for a results file.

    Raises:
        ValueError: if the data or the logits are malformed, or the model takes other images.
    """

    def __init__(
        self, model: Callable[..., Any], dataset: Any, batch_size: int | None = None, progress: bool = True
    ) -> None:
        self.model = model
        self.progress = progress
        self.x, self.y, data_batch_size = collect_examples(dataset)
        check_image_shape(model, self.x)
        self.batch_size = fixed_batch_size(model, batch_size or data_batch_size, len(self.x))
        clean = clean_answers(inference_forward(model), self.x, self.y, self.batch_size)
        self.correct = clean.correct
        self.num_classes = clean.num_classes
        self.standing: dict[str, np.ndarray] = {}
        self.attacks: dict[str, dict[str, Any]] = {}
        self._flags = list(clean.flags)
        self._of_clean_images = {flag.name for flag in clean.flags}
        self._looked_at_gradients: set[str] = set()
        self._white_box: list[float] = []  # accuracies under attacks with gradients
        self._black_box: dict[str, float] = {}

    def gradient_attack(self, name: str, attack: GradientAttack) -> None:
        """Runs an attack of this package that follows gradients, such as `LinfPGD`."""
        begin = time.perf_counter()
        self._look_at_gradients(self.model, "The attack that follows gradients", log_odds)
        standing, history = robust_mask(
            self.model, attack, self.x, self.y, self.correct, self.batch_size, name, self.progress
        )
        self._white_box.append(history[-1])
        iterations = _iterations(attack, float(self.correct.mean()), history)
        self._record(
            name,
            standing,
            {
                **attack.describe(),
                "robust_accuracy_after_restart": history,
                "seconds": time.perf_counter() - begin,
                "iterations_per_image": iterations,
                "gradient_passes_per_image": iterations,
            },
        )

    def auto_attack(self, name: str, attack: AutoAttack) -> dict[str, Any]:
        """Runs AutoAttack, or one of its attacks alone.

        Returns:
            The result of `run_standard_evaluation`, with the adversarial examples.
        """
        begin = time.perf_counter()
        result = attack.run_standard_evaluation(self.x, self.y)
        self._record_ensemble(name, attack.attacks, result, time.perf_counter() - begin)
        return result

    def auto_attack_individual(
        self, name: str, attack: AutoAttack, after_each: Callable[[], None] | None = None
    ) -> None:
        """Runs every attack of AutoAttack alone on all images, and records it as `name: attack`.

        Args:
            name: Name of the ensemble.
            attack: The ensemble.
            after_each: Called after each attack is recorded.
        """
        parts = {each.name: each for each in attack.attacks}

        def keep(part: str, result: dict[str, Any]) -> None:
            self._record_ensemble(f"{name}: {part}", [parts[part]], result, result["attacks"][part]["seconds"])
            if after_each is not None:
                after_each()

        attack.run_standard_evaluation_individual(self.x, self.y, keep)

    def minimum_norm(self, name: str, attack: MinimumNormAttack, epsilon: float) -> None:
        """Runs an attack that looks for the nearest adversarial example, such as `FMN`, on all images.

        Args:
            name: Name in the results, which also hold `median_distance`, `distances` and the `points` of the curve.
            attack: The attack.
            epsilon: Radius in the norm of the attack; an image withstands if its example is further away.
        """
        begin = time.perf_counter()
        self._look_at_gradients(self.model, "The attack that follows gradients", log_odds)
        distance = nearest_examples(self.model, attack, self.x, self.y, self.batch_size, name, self.progress).distance
        standing = (distance > epsilon) & self.correct
        self._white_box.append(float(standing.mean()))
        self._record(
            name,
            standing,
            {
                **attack.describe(),
                "epsilon": epsilon,
                **distances_as_results(distance, attack.norm),
                "seconds": time.perf_counter() - begin,
                "iterations_per_image": float(attack.num_steps),
                "gradient_passes_per_image": float(attack.num_steps * attack.gradients_per_step),
            },
        )

    def _record_ensemble(
        self, name: str, attacks: Sequence[StagedAttack], result: dict[str, Any], seconds: float
    ) -> None:
        uses_gradients = [each.uses_gradients for each in attacks]
        black_box_numbers = [number for number, uses in enumerate(uses_gradients) if not uses]
        if any(uses_gradients):
            # Without the black-box attacks of the ensemble, because the ensemble itself compares those.
            self._white_box.append(float(np.isin(result["broken_by"], [-1, *black_box_numbers]).mean()))
        else:
            self._black_box[name] = result["robust_accuracy"]
        told = zip(result["flag_names"], result["flags"], strict=True)
        self._flags += [safety.Flag(*flag) for flag in told if flag[0] not in self._of_clean_images]
        parts = result["attacks"]
        alone = {} if len(parts) > 1 else next(iter(parts.values()))
        self._record(
            name,
            (result["broken_by"] == -1) & self.correct,
            {
                **{key: result[key] for key in ("norm", "epsilon", "seed", "batch_size")},
                **(alone or {"version": result["version"]}),
                "largest_perturbation": result["largest_perturbation"],
                "seconds": seconds,
                "iterations_per_image": sum(each["iterations_per_image"] for each in parts.values()),
                "gradient_passes_per_image": sum(each["gradient_passes_per_image"] for each in parts.values()),
                **({} if alone else {"attacks": parts}),
            },
        )

    def transfer(self, name: str, source: Callable[..., Any], attack: GradientAttack) -> None:
        """Tests the model on adversarial examples for `source`; see `transfer_attack`."""
        begin = time.perf_counter()
        self._look_at_gradients(source, "The network that examples are transferred from", log_odds)
        found = transfer_attack(
            self.model, source, attack, self.x, self.y, self.correct, self.batch_size, self.progress
        )
        self._black_box[name] = found.history[-1]
        self._record(
            name,
            found.standing,
            {
                **attack.describe(),
                "robust_accuracy_after_restart": found.history,
                "source_clean_accuracy": found.source_clean_accuracy,
                "source_fooled": found.source_fooled,
                "seconds": time.perf_counter() - begin,
                "iterations_per_image": _iterations(attack, float(self.correct.mean()), found.history),
                "gradient_passes_per_image": 0.0,
            },
        )

    def foolbox_check(self, name: str, attack: GradientAttack) -> dict[str, dict[str, Any]]:
        """Compares attack `name`, after it has run with these settings, with Foolbox; see `foolbox_check`."""
        self._look_at_gradients(self.model, "Foolbox", cross_entropy)
        return foolbox_check(
            self.model, attack, self.x, self.y, self.correct, self.standing[name], self.batch_size, self.progress
        )

    def _look_at_gradients(self, model: Callable[..., Any], whose: str, loss_fn: Callable[..., Any]) -> None:
        """Checks for gradients of exactly zero, once for each attacker."""
        if whose not in self._looked_at_gradients:
            self._looked_at_gradients.add(whose)
            self._flags += masked_gradients(model, self.x, self.y, self.correct, self.batch_size, whose, loss_fn)

    def flags(self) -> list[safety.Flag]:
        """Returns reasons to doubt the numbers, each once."""
        found = list(self._flags)
        if self._white_box:
            for name, accuracy in self._black_box.items():
                found += safety.black_box_better(name, min(self._white_box), accuracy)
        accuracies = {"clean": float(self.correct.mean())}
        accuracies |= {name: record["robust_accuracy"] for name, record in self.attacks.items()}
        found += out_of_order(accuracies)
        return list(dict.fromkeys(found))

    def results(self) -> dict[str, Any]:
        """Returns the results as plain values for a results file.

        Returns:
            `images`, `batch_size`, `num_classes`, `clean_accuracy`, `robust_accuracy` (under all attacks together),
            `attacks` (in the order in which they ran: their settings, `robust_accuracy` alone, `worst_case_accuracy`
            under this attack and all before it, `broken`, `broken_by_no_other`, `seconds`, `iterations_per_image` and
            `gradient_passes_per_image` of this model), `flags` (sentences) and `flag_names`.
        """
        broken = {name: self.correct & ~standing for name, standing in self.standing.items()}
        times_broken = np.sum([*broken.values(), np.zeros(len(self.x), int)], axis=0)
        standing = self.correct
        attacks = {}
        for name, record in self.attacks.items():
            standing = standing & self.standing[name]
            attacks[name] = {
                **record,
                "worst_case_accuracy": float(standing.mean()),
                "broken": int(broken[name].sum()),
                "broken_by_no_other": int((broken[name] & (times_broken == 1)).sum()),
            }
        return {
            "images": len(self.x),
            "batch_size": self.batch_size,
            "num_classes": self.num_classes,
            "clean_accuracy": float(self.correct.mean()),
            "robust_accuracy": float(standing.mean()),
            "attacks": attacks,
            **safety.as_results(self.flags()),
        }

    def _record(self, name: str, standing: np.ndarray, record: dict[str, Any]) -> None:
        if name in self.attacks:
            raise ValueError(f"Each attack needs a name of its own. Received: name={name!r} twice")
        self.standing[name] = standing
        self.attacks[name] = {**record, "robust_accuracy": float(standing.mean())}


def out_of_order(accuracies: dict[str, float], order: Sequence[str] = BY_STRENGTH) -> list[safety.Flag]:
    """Flags a stronger attack that leaves a higher accuracy than a weaker one, by more than 0.2 points.

    Args:
        accuracies: Attack -> accuracy under it alone, in [0, 1].
        order: Names from weak to strong; names without an accuracy are left out.
    """
    present = [name for name in order if name in accuracies]
    return [
        safety.Flag(
            "out_of_order",
            f"{strong} leaves {100 * accuracies[strong]:.2f} % and the weaker {weak} {100 * accuracies[weak]:.2f} %: "
            "the stronger attack is stuck, so gradients may be masked, or it took too few steps.",
        )
        for weak, strong in itertools.pairwise(present)
        if accuracies[strong] - accuracies[weak] > safety.IMPROVEMENT
    ]


def _iterations(attack: GradientAttack, clean_accuracy: float, history: list[float]) -> float:
    """Steps per image of the data set: every restart attacks what stood before it."""
    return attack.num_steps * sum([clean_accuracy, *history[:-1]])
