"""Networks on disk: `.keras` for further work with this package, a SavedModel for other programs."""

import contextlib
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.data import files
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_directory, replace_file
from tf_robust_sparse.saving.compact import COMPACT_SUFFIX, load_compact
from tf_robust_sparse.saving.kinds import NETWORK_FILE, way_in
from tf_robust_sparse.saving.strip import strip


def save_network(network: keras.Model, path: str | os.PathLike) -> Path:
    """Saves `network` with its masks, signs and batch norm statistics, without an optimizer.

    Args:
        network: The network, not the model that trains it.
        path: A directory, in which `network.keras` is written, or a file ending in `.keras`. An existing file stays
            until the new one is complete.

    Returns:
        The path of the file.

    Raises:
        OSError: if it cannot be written.
    """
    file = _file(path)
    with replace_file(file) as temporary, _uncompiled(network):
        network.save(temporary)
    return file


def load_network(path: str | os.PathLike) -> keras.Model:
    """Loads a network that `save_network` or `save_compact` wrote. No code from the file is run.

    Args:
        path: The directory, the `.keras` file, or a `.trs` file.

    Returns:
        The network, not compiled, under the dtype policy it was saved with.

    Raises:
        ValueError: if there is no such file, if it is damaged, or if it holds layers whose code is not registered.
    """
    if user_path(path).suffix == COMPACT_SUFFIX and not user_path(path).is_dir():
        return load_compact(path)
    file = _file(path)
    if not file.is_file():
        way = way_in(path)
        if way:
            raise ValueError(f"{os.fspath(path)} is no .keras file; {way}")
        where = file if user_path(path).is_dir() else os.fspath(path)
        raise ValueError(
            f"There is no network at {where}; pass the directory or the .keras file that `save_network` wrote. "
            f"Received: path={os.fspath(path)!r}"
        )
    _check_archive(file)
    try:
        with warnings.catch_warnings():
            # Keras only warns when it leaves layers with new random weights.
            warnings.filterwarnings("error", message="(?s).*freshly-initialized", category=UserWarning)
            return keras.saving.load_model(file, compile=False, safe_mode=True)
    # Keras raises TypeError for unknown classes, ValueError for code or wrong weights, and anything for odd files.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"The network in {file} cannot be rebuilt; if it has custom layers, register them with "
            f"keras.saving.register_keras_serializable and import them first. Keras says: {reason:.400}"
        ) from error


def export_network(network: keras.Model, path: str | os.PathLike, packed: bool = False) -> Path:
    """Writes `network` as a SavedModel, which any TensorFlow loads without this package.

    `tf.saved_model.load(path).serve` maps pixels `(batch, height, width, channels)`, float32 in [0, 1], to logits
    `(batch, num_classes)`, float32, for every batch size; gradients with respect to the pixels work. Keep the loaded
    object in a variable, because its weights are freed with it.

    Args:
        network: A functional or sequential model; it is stripped first.
        path: The directory to write. An existing one is replaced when the new one is complete.
        packed: Whether kernels with less than half of their entries are stored by these alone, eight bytes each. Every
            call unpacks them again, so that small batches take longer.

    Returns:
        The path of the directory.

    Raises:
        ValueError: if the network cannot be stripped.
        OSError: if it cannot be written, or `path` is a file.
    """
    stripped = strip(network)
    path = user_path(path)
    weights = _Weights(stripped, packed)
    archive = keras.export.ExportArchive()
    # Not the network: Keras tracks its variables and the TensorFlow variables in them, and would write weights twice.
    archive.track(weights)
    trained, others = ([each for stored in group for each in stored] for group in weights.stored)
    archive.add_variable_collection("variables", trained + others)
    archive.add_variable_collection("trainable_variables", trained)
    archive.add_variable_collection("non_trainable_variables", others)
    inputs = stripped.inputs[0] if isinstance(stripped, keras.Sequential) else stripped.input
    signature = keras.tree.map_structure(
        lambda x: keras.InputSpec(dtype=x.dtype, shape=(None, *x.shape[1:]), name=x.name), inputs
    )
    archive.add_endpoint("serve", weights.logits, [signature])
    with replace_directory(path) as temporary:
        archive.write_out(str(temporary), verbose=False)
    return path


class _Weights(tf.Module):
    """The weights of a network as a SavedModel stores them, and the network with these weights."""

    def __init__(self, network: keras.Model, packed: bool):
        super().__init__()
        self._network = network.name, network.stateless_call
        self._weights = [network.trainable_variables, network.non_trainable_variables]
        self.stored = [[_stored(weight, packed) for weight in each] for each in self._weights]

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the logits of images, in inference mode whatever the defaults of layers are, such as Resizing."""
        groups = zip(self._weights, self.stored, strict=True)
        values = [[_value(*each) for each in zip(*group, strict=True)] for group in groups]
        name, call = self._network
        with tf.name_scope(name):  # converters name what they lack by it
            return call(*values, x, training=False)[0]


def _stored(weight: keras.Variable, packed: bool) -> list[tf.Variable]:
    """Returns the variables that a file holds of a weight: itself, or its values that are not 0 and their positions."""
    if not keras.backend.is_float_dtype(weight.dtype):
        return []  # the state of a random generator, which inference does not need
    dense = np.asarray(weight)
    positions = np.flatnonzero(dense)
    if not packed or dense.ndim < 2 or 2 * positions.size >= dense.size:
        return [weight.value]
    return [tf.Variable(dense.ravel()[positions]), tf.Variable(positions.astype(np.int32))]


def _value(weight: keras.Variable, stored: Sequence[tf.Variable]) -> Any:
    if len(stored) < 2:
        return tf.convert_to_tensor(stored[0]) if stored else tf.zeros(weight.shape, weight.dtype)
    values, positions = stored
    return tf.reshape(tf.scatter_nd(positions[:, tf.newaxis], values, [math.prod(weight.shape)]), weight.shape)


@contextlib.contextmanager
def _uncompiled(network: keras.Model) -> Iterator[None]:
    """Hides the optimizer, whose slots are as large as the weights; `save_checkpoint` stores them."""
    if not network.compiled:
        yield
        return
    optimizer = network.optimizer
    network.optimizer, network.compiled = None, False
    try:
        yield
    finally:
        network.optimizer, network.compiled = optimizer, True


def _file(path: str | os.PathLike) -> Path:
    path = user_path(path)
    return path if path.suffix == ".keras" else path / NETWORK_FILE


def _check_archive(file: Path) -> None:
    damage = None
    try:
        with zipfile.ZipFile(file) as archive:
            files.check_unpacked(archive, file)
            member = archive.testzip()
            damage = None if member is None else f"{member} does not match its checksum"
            names = archive.namelist()
    except Exception as error:  # zipfile raises many kinds of exceptions for damage
        damage = " ".join(str(error).split())[:400] or type(error).__name__
    if damage is not None:
        raise ValueError(f"{file} is damaged or not a .keras file; restore it from a copy or save again: {damage}")
    if "config.json" not in names:
        raise ValueError(
            f"{file} is a zip archive but no .keras file; pass what `save_network` wrote. It holds: "
            f"{', '.join(names[:5])}"
        )
