"""Networks on disk: `.keras` for further work with this package, a SavedModel for other programs."""

import contextlib
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras

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


def export_network(network: keras.Model, path: str | os.PathLike) -> Path:
    """Writes `network` as a SavedModel, which any TensorFlow loads without this package.

    `tf.saved_model.load(path).serve` maps pixels `(batch, height, width, channels)`, float32 in [0, 1], to logits
    `(batch, num_classes)`, float32, for every batch size; gradients with respect to the pixels work. Keep the loaded
    object in a variable, because its weights are freed with it.

    Args:
        network: A functional or sequential model; it is stripped first.
        path: The directory to write. An existing one is replaced when the new one is complete.

    Returns:
        The path of the directory.

    Raises:
        ValueError: if the network cannot be stripped.
        OSError: if it cannot be written, or `path` is a file.
    """
    stripped = strip(network)
    path = user_path(path)
    archive = keras.export.ExportArchive()
    archive.track(stripped)
    # Keras tracks its variables and the TensorFlow variables inside them, so every weight would be written twice.
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        archive.add_variable_collection(name, [variable.value for variable in getattr(stripped, name)])
    inputs = stripped.inputs[0] if isinstance(stripped, keras.Sequential) else stripped.input
    signature = keras.tree.map_structure(
        lambda x: keras.InputSpec(dtype=x.dtype, shape=(None, *x.shape[1:]), name=x.name), inputs
    )
    # Without `training=False`, a layer such as Resizing, whose default is True, has batch norm behind it train.
    archive.add_endpoint("serve", lambda x: stripped(x, training=False), [signature])
    with replace_directory(path) as temporary:
        archive.write_out(str(temporary), verbose=False)
    return path


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
