"""Accuracy on common corruptions of images."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.corruptions import (
    COMPUTED_CORRUPTIONS,
    SEVERITIES,
    check_computed,
    check_names,
    check_severities,
    corrupt,
    find_corruptions,
    read_corruptions,
)
from tf_robust_sparse.evaluation.clean import checked_logits
from tf_robust_sparse.evaluation.examples import (
    DEFAULT_BATCH_SIZE,
    as_size,
    check_image_shape,
    collect_examples,
    fixed_batch_size,
)
from tf_robust_sparse.evaluation.progress import Progress
from tf_robust_sparse.layers import folded_kernels
from tf_robust_sparse.layers.forward import inference_forward

Examples = Iterator[tuple[str, int, np.ndarray, np.ndarray]]


def evaluate_corruptions(
    model: Callable[..., Any],
    dataset: Any = None,
    directory: str | os.PathLike | None = None,
    names: Iterable[str] | None = None,
    severities: Iterable[int] = SEVERITIES,
    max_examples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the accuracy of a model on common corruptions of images.

    Corrupted images come from the files of CIFAR-10-C. Or they are computed from a data set with the same formulas and
    parameters, which were chosen for 32x32 images, and truncated to bytes like the files. Frost exists only as a file,
    so means over the other fourteen corruptions do not compare with published means.

    Args:
        model: Keras model, or any callable from images to logits, such as `load_saved_model(path)`.
        dataset: Clean images, for the clean accuracy and to compute corruptions from: batched `tf.data.Dataset` of
            `(x, y)`, or a tuple of arrays; images `(batch, height, width, channels)`, floating, in `[0, 1]`; labels
            `(batch,)`, integers.
        directory: Folder with the files; see `read_corruptions`. If a data set is given too, corruptions without
            a file are computed.
        names: Names of corruptions; `None` for all fifteen with a directory, and for all of `COMPUTED_CORRUPTIONS`
            without one.
        severities: Some of 1 to 5.
        max_examples: How many of the first images to use, of the data set and of each severity; `None` for all.
        batch_size: Number of images classified at a time; `None` for the batch size of the data set, or 128.
        seed: Seed of computed noise.
        progress: Whether to show a bar on standard error.

    Returns:
        Plain values, ready for a results file: `images` (at each corruption and severity), `severities`,
        `clean_accuracy` (`None` without a data set), `mean_corruption_accuracy` (over corruptions), `seconds`,
        `images_per_second`, and `corruptions`, a dictionary from each name to its `accuracy` (mean over severities),
        `accuracy_at_severity` (a dictionary with the keys "1" to "5") and `source`, "files" or "computed". Accuracies
        are in `[0, 1]`; seconds include reading, computing and tracing.

    Raises:
        FileNotFoundError: if a file is missing that cannot be computed.
        ValueError: if there is neither a data set nor a directory, a name or a severity is unknown, an image or a
            label is malformed, a logit is not finite, or the files and the data set do not fit together or the model.

    Reference: [Hendrycks & Dietterich, 2019](https://arxiv.org/abs/1903.12261).
    """
    if dataset is None and directory is None:
        raise ValueError(
            "Corrupted images are computed from a data set or read from files; pass `dataset`, or `directory` with the "
            "files of CIFAR-10-C. Received: dataset=None, directory=None"
        )
    begin = time.perf_counter()
    names = check_names(COMPUTED_CORRUPTIONS if names is None and directory is None else names)
    severities = check_severities(severities)
    sources = _sources(names, severities, directory, dataset is not None)
    x_clean, y_clean, data_batch_size = None, None, DEFAULT_BATCH_SIZE
    if dataset is not None:
        x_clean, y_clean, data_batch_size = collect_examples(dataset, max_examples)
    elif max_examples is not None and max_examples < 1:
        raise ValueError(
            f"`max_examples` is at least 1; pass None for all examples. Received: max_examples={max_examples}"
        )
    corrupted = _corrupted(sources, severities, directory, x_clean, y_clean, max_examples, seed)
    first = next(corrupted)
    images = first[2].shape
    check_image_shape(model, first[2])
    batch_size = fixed_batch_size(model, batch_size or data_batch_size, len(first[2]))
    step = _compiled_forward(model, (batch_size, *images[1:]))

    def accuracy(x: np.ndarray, y: np.ndarray, where: str) -> float:
        return float((checked_logits(step, x, y, batch_size, where).argmax(axis=-1) == y).mean())

    clean_accuracy = None
    if x_clean is not None and y_clean is not None:
        _check_alike(x_clean.shape, images)
        clean_accuracy = accuracy(x_clean, y_clean, "the clean images")
    accuracies: dict[str, dict[str, float]] = {name: {} for name in names}
    total = len(first[2]) * len(names) * len(severities)
    with Progress("corruptions", total, progress) as bar:
        for name, severity, x, y in itertools.chain([first], corrupted):
            _check_alike(x.shape, images)
            accuracies[name][str(severity)] = accuracy(x, y, f"images with {name} of severity {severity}")
            bar.advance(len(x))
    means = {name: float(np.mean(list(at_severity.values()))) for name, at_severity in accuracies.items()}
    seconds = time.perf_counter() - begin
    return {
        "images": len(first[2]),
        "severities": severities,
        "clean_accuracy": clean_accuracy,
        "mean_corruption_accuracy": float(np.mean(list(means.values()))),
        "corruptions": {
            name: {"accuracy": means[name], "accuracy_at_severity": accuracies[name], "source": sources[name]}
            for name in names
        },
        "seconds": seconds,
        "images_per_second": total / seconds,
    }


def _sources(
    names: list[str], severities: list[int], directory: str | os.PathLike | None, has_dataset: bool
) -> dict[str, str]:
    """Returns the source of each corruption, "files" or "computed"."""
    if directory is None:
        check_computed(names)
        return dict.fromkeys(names, "computed")
    found = find_corruptions(directory, severities)
    computed = set(COMPUTED_CORRUPTIONS) - set(found) if has_dataset else set()
    return {name: "computed" if name in computed else "files" for name in names}


def _corrupted(
    sources: dict[str, str],
    severities: list[int],
    directory: str | os.PathLike | None,
    x: np.ndarray | None,
    y: np.ndarray | None,
    max_examples: int | None,
    seed: int,
) -> Examples:
    """Yields every corruption and severity with images and labels, one at a time to save memory."""
    from_files = [name for name, source in sources.items() if source == "files"]
    read: Examples = iter(())
    if from_files and directory is not None:
        read = read_corruptions(directory, from_files, severities)
    for name, source in sources.items():
        for severity in severities:
            if source == "files":
                _, _, x_read, y_read = next(read)
                yield name, severity, x_read[:max_examples], y_read[:max_examples]
            elif x is not None and y is not None:
                yield name, severity, corrupt(x, name, severity, seed), y


def _compiled_forward(model: Callable[..., Any], shape: tuple[int, ...]) -> Callable[[np.ndarray], tf.Tensor]:
    """Returns a function from one batch to its logits, traced once."""
    forward = inference_forward(model)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False)
    def step(x: tf.Tensor) -> tf.Tensor:
        with folded_kernels(model) if isinstance(model, keras.Model) else contextlib.nullcontext():
            return forward(x)

    return step


def _check_alike(shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raises unless clean and corrupted images have the same number and size."""
    if shape != first:
        raise ValueError(
            "Files and data set must hold the same images; pass the test split that the files were made from. "
            f"Received: {first[0]} images of {as_size(first[1:])}, and {shape[0]} of {as_size(shape[1:])}"
        )
