"""How files of networks of each kind are loaded; kinds are recognized by their names."""

import os
from pathlib import Path

from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.compact import COMPACT_SUFFIX
from tf_robust_sparse.saving.pytorch_weights import PYTORCH_SUFFIXES, pytorch_modules
from tf_robust_sparse.saving.reference_weights import read_reference_weights

NETWORK_FILE = "network.keras"
_OURS = "is loaded by trs.load_network and passed as --network to run_robustness_eval.py"
_IMPORTED = "is put into a network by run_import_weights.py --weights"
# Suffix, or file in a directory -> how it is loaded.
_WAYS = {
    ".keras": f"a .keras file {_OURS}",
    COMPACT_SUFFIX: f"a compact file {_OURS}",
    **dict.fromkeys(
        PYTORCH_SUFFIXES,
        f"a PyTorch checkpoint holds weights alone; it {_IMPORTED}, or trs.saving.import_pytorch_weights",
    ),
    **dict.fromkeys(
        (".pickle", ".pkl"),
        f"a published pickle holds weights alone; it {_IMPORTED}, or trs.saving.import_reference_weights",
    ),
    ".h5": "a checkpoint of training holds no architecture; pass the network.keras that its run left",
    ".onnx": "an ONNX file is made for other programs and not read back; pass the network.keras it was made from",
    "saved_model.pb": "a SavedModel is loaded by trs.evaluation.load_saved_model and passed as --network",
    NETWORK_FILE: f"a directory with {NETWORK_FILE} {_OURS}",
}


def way_in(path: str | os.PathLike) -> str:
    """Returns how a file or directory of a known kind is loaded, for messages that expected another kind.

    Returns `""` if there is no such file or its kind is unknown.
    """
    path = user_path(path)
    if path.is_dir():
        return next((way for name, way in _WAYS.items() if not name.startswith(".") and (path / name).is_file()), "")
    return _WAYS.get(path.suffix, "") if path.is_file() else ""


def check_weights(path: str | os.PathLike) -> Path:
    """Reads published weights once, so that errors in the file show before anything else is done.

    Args:
        path: See `import_pytorch_weights` and `import_reference_weights`.

    Raises:
        ValueError: if there is no such file, it is of another kind, or it cannot be read.
        ImportError: if the package that reads it is not installed.
    """
    path = user_path(path)
    if path.suffix in PYTORCH_SUFFIXES:
        pytorch_modules(path)
    elif path.is_file() and path.suffix in (".keras", COMPACT_SUFFIX, ".h5", ".onnx"):
        raise ValueError(f"expected a published *_weights.pickle or a PyTorch checkpoint; {_WAYS[path.suffix]}")
    else:
        read_reference_weights(path)
    return path
