"""Reasons to doubt a robust accuracy, each as one sentence for the report."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-4  # between normalized logits of the same images
IMPROVEMENT = 0.002  # difference of accuracies that is only noise of a black-box attack
PROBED = 256  # number of images that are also tried times 255
MUCH_BETTER = 0.1  # difference of accuracies
SOME_IMAGES = 50  # the accuracy on fewer images says little
DYNAMIC_DEFENSE = (
    "networks that adapt weights or inputs at test time cannot be recognized here; evaluate such a defense with an "
    "attack made for it"
)


class Flag(NamedTuple):
    """A reason for doubt: a short name for programs and a sentence for people."""

    name: str
    sentence: str


def as_results(flags: Sequence[Flag]) -> dict[str, list[str]]:
    """Returns the entries `flags` (sentences) and `flag_names` of a results file, each reason once."""
    once = list(dict.fromkeys(flags))
    return {"flags": [flag.sentence for flag in once], "flag_names": [flag.name for flag in once]}


def randomized(logits: Callable[[np.ndarray], np.ndarray], x: np.ndarray, passes: int = 5) -> list[Flag]:
    """Flags a network whose logits differ from call to call.

    Args:
        logits: Function from a batch of images to logits.
        x: One batch of images.
        passes: Number of calls.
    """
    answers = [logits(x) for _ in range(passes)]
    largest = max(_difference(answers[0], other) for other in answers[1:])
    votes = {int((answer.argmax(-1) != answers[0].argmax(-1)).sum()) for answer in answers}
    if largest <= TOLERANCE and votes == {0}:
        return []
    return [
        Flag(
            "randomised",
            f"The network gives other logits when asked again (difference {largest:.2g}): use version='rand', which "
            "averages gradients over its randomness, and check that dropout is off.",
        )
    ]


def depends_on_batch(logits: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> list[Flag]:
    """Flags a network whose logits of an image depend on the other images of the batch, for example by batch norm.

    Args:
        logits: Function from a batch of images of any size to logits.
        x: One batch of images.
    """
    half = len(x) // 2
    if not half:
        return []
    apart = np.concatenate([logits(x[:half]), logits(x[half:])])
    difference = _difference(logits(x), apart)
    if difference <= TOLERANCE:
        return []
    return [
        Flag(
            "batch_dependent",
            f"Logits of an image change with the rest of the batch (difference {difference:.2g}): batch norm may "
            "run in training mode, and adversarial examples from one batch may not hold in another.",
        )
    ]


def probabilities(logits: np.ndarray) -> list[Flag]:
    """Flags outputs that are probabilities already."""
    sums = logits.sum(-1)
    if logits.max() >= 1 + 1e-5 or logits.min() <= -1e-5 or np.abs(sums - 1).max() >= 1e-5:
        return []
    return [
        Flag(
            "softmax",
            "The outputs are probabilities, and gradients vanish in a softmax: pass "
            "evaluation.without_softmax(network).",
        )
    ]


def wrong_pixels(
    logits: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray, of_images: np.ndarray
) -> list[Flag]:
    """Flags a network that seems to expect other pixels than [0, 1], because its clean errors would count as broken.

    Args:
        logits: Function from any number of images to logits, which may be infinite here.
        x: `(images, ...)`, in [0, 1].
        y: `(images,)`, labels.
        of_images: The logits of `x`.
    """
    correct = of_images.argmax(-1) == y
    accuracy, chance = float(correct.mean()), 1 / of_images.shape[-1]
    with np.errstate(all="ignore"):
        of_bytes = np.nan_to_num(logits(255 * x[:PROBED]))
    of_bytes_accuracy, of_the_same = float((of_bytes.argmax(-1) == y[:PROBED]).mean()), float(correct[:PROBED].mean())
    if of_bytes_accuracy - of_the_same > MUCH_BETTER:
        return [
            Flag(
                "pixel_range",
                f"The clean accuracy is {100 * of_the_same:.2f} %, and {100 * of_bytes_accuracy:.2f} % on the same "
                "images times 255: the network expects pixels from 0 to 255; pass --pixel_range=255, or "
                "evaluation.with_pixel_range(network, 255).",
            )
        ]
    noise = 2 * (chance * (1 - chance) / len(y)) ** 0.5
    if len(y) < SOME_IMAGES or accuracy > chance + noise:
        return []
    return [
        Flag(
            "near_chance",
            f"The clean accuracy, {100 * accuracy:.2f} %, is no better than guessing among {of_images.shape[-1]} "
            "classes: check that the network expects pixels in [0, 1] and these classes in this order.",
        )
    ]


def few_classes(num_classes: int, num_targets: Mapping[str, int]) -> list[Flag]:
    """Flags that attacks had to be adapted to a small number of classes.

    Args:
        num_classes: Number of logits.
        num_targets: Attack -> number of classes to aim at, for targeted attacks.
    """
    instead = []
    if "apgd-dlr" in num_targets and num_classes == 2:
        instead.append("apgd-dlr climbs the cross entropy")
    if "apgd-t" in num_targets and num_classes < 4:
        instead.append("apgd-t climbs the cross entropy of its target")
    sentences = [f"the DLR losses do not exist: {', '.join(instead)}"] if instead else []
    too_many = [
        f"{name} has {n} targets" for name, n in num_targets.items() if name.endswith("-t") and n >= num_classes
    ]
    if too_many:
        sentences.append(f"{' and '.join(too_many)}: {num_classes - 1} are aimed at")
    return [Flag("few_classes", f"With {num_classes} classes {'; '.join(sentences)}.")] if sentences else []


def version_of_another_norm(version: str, norm: str) -> list[Flag]:
    """Flags the version `plus` in L1, because it is made for Linf and L2."""
    if (version, norm) != ("plus", "L1"):
        return []
    return [
        Flag(
            "plus_in_l1",
            "The version plus is meant for Linf and L2: compare numbers in L1 with those of the version standard.",
        )
    ]


def zero_gradients(attack: str, count: int, images: int, has_black_box: bool = False) -> list[Flag]:
    """Flags gradients that were exactly zero where an attack began; `has_black_box` spares advice that was followed."""
    if not count:
        return []
    return [
        Flag(
            "zero_gradient",
            f"{attack} met a gradient of exactly zero on {count} of {images} images: gradients may be masked, and "
            f"attacks that follow them see nothing{'' if has_black_box else '; add the black-box attack Square'}.",
        )
    ]


def black_box_better(attack: str, before: float, after: float) -> list[Flag]:
    """Flags an attack without gradients that breaks images which attacks with gradients left robust.

    Args:
        attack: Name of the attack.
        before: Lowest robust accuracy before it, in [0, 1].
        after: Robust accuracy after it.
    """
    if before - after <= IMPROVEMENT:
        return []
    return [
        Flag(
            "masked_gradients",
            f"{attack}, which uses no gradient of this network, lowers the robust accuracy by "
            f"{100 * (before - after):.2f} points more: gradients are masked, and the true robust accuracy may be "
            "lower still.",
        )
    ]


def recounted(expected: float, found: float, batch_size: int) -> list[Flag]:
    """Flags a robust accuracy that differs in another batch size."""
    if expected == found:
        return []
    return [
        Flag(
            "recount",
            f"Counted again in batches of {batch_size} the robust accuracy is {100 * found:.2f} % instead of "
            f"{100 * expected:.2f} %: the answers of the network depend on the batch or on rounding.",
        )
    ]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest Euclidean distance between the normalized logits of an image."""

    def normalized(logits: np.ndarray) -> np.ndarray:
        return logits / (np.linalg.norm(logits, axis=-1, keepdims=True) + 1e-10)

    return float(np.linalg.norm(normalized(a) - normalized(b), axis=-1).max())
