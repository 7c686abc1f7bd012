"""Finds, checks and loads the networks that come with the package."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import keras

from tf_robust_sparse.saving.compact import COMPACT_SUFFIX, load_compact

FOLDER = Path(__file__).with_name("networks")
PREFIX = "pretrained:"  # before a name where a path is expected


def list_pretrained() -> list[str]:
    """Returns the names of the networks that come with the package, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def pretrained_file(name: str) -> Path:
    """Returns the compact file of a network.

    Raises:
        ValueError: if there is no network of this name.
    """
    if name not in list_pretrained():
        close = difflib.get_close_matches(name, list_pretrained(), 2, 0.4)
        hint = f"such as {' or '.join(close)}" if close else "as list_pretrained() has them"
        raise ValueError(f"`name` must be the name of a network of this package, {hint}. Received: name={name!r}")
    return FOLDER / f"{name}{COMPACT_SUFFIX}"


def pretrained_card(name: str) -> dict[str, Any]:
    """Returns what is known of a network, ready for JSON.

    Args:
        name: One of `list_pretrained()`.

    Returns:
        `name`, `sha256` and `bytes` of the file, `model`, `input_shape`, `data`, `license`, `weights` (`nonzero` of
        `prunable` kernel entries), `training` (objective, sparsifier, epochs, seed, seconds and the flags of the
        run), `evaluation` (images, norm, epsilon in pixels of [0, 1], accuracies in [0, 1] and reasons for doubt),
        `certified` (a list, empty if nothing was), `limits` and `versions`.

    Raises:
        ValueError: if there is no network of this name.
    """
    return json.loads(pretrained_file(name).with_suffix(".json").read_text())


def load_pretrained(name: str) -> keras.Model:
    """Loads a network that comes with the package.

    ```python
    import tf_robust_sparse as trs

    print(trs.list_pretrained())
    network = trs.load_pretrained("fashion-small-cnn-rigl-0.1")
    images = trs.data.load("fashion_mnist_sample")
    logits = network(images.test_images[:4] / 255.0)
    ```

    Args:
        name: One of `list_pretrained()`.

    Returns:
        A model of this package's layers from pixels in [0, 1], `(batch, height, width, channels)`, to logits. It can
        be trained further.

    Raises:
        ValueError: if there is no network of this name, or its file is not the one that was shipped.
    """
    file, expected = pretrained_file(name), pretrained_card(name)["sha256"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != expected:
        raise ValueError(
            f"{file} is not the network that was shipped, sha256 {expected}; install the package again. "
            f"Received: sha256 {digest}"
        )
    return load_compact(file)
