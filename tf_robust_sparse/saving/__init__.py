"""Files: networks, checkpoints of runs, SavedModels for other programs, and published weights."""

from tf_robust_sparse.deprecation import renamed
from tf_robust_sparse.saving.checkpoint import load_checkpoint, save_checkpoint
from tf_robust_sparse.saving.compact import compact_sizes, save_compact
from tf_robust_sparse.saving.copy_weights import copy_weights
from tf_robust_sparse.saving.litert_export import export_litert
from tf_robust_sparse.saving.network import export_network, load_network, save_network
from tf_robust_sparse.saving.onnx_export import export_onnx, export_verifier_onnx
from tf_robust_sparse.saving.pytorch_weights import import_pytorch_weights
from tf_robust_sparse.saving.reference_weights import import_reference_weights
from tf_robust_sparse.saving.shrink import shrink
from tf_robust_sparse.saving.strip import strip

__all__ = [
    "compact_sizes",
    "copy_weights",
    "export_litert",
    "export_network",
    "export_onnx",
    "export_verifier_onnx",
    "import_pytorch_weights",
    "import_reference_weights",
    "load_checkpoint",
    "load_network",
    "save_checkpoint",
    "save_compact",
    "save_network",
    "shrink",
    "strip",
]

__getattr__ = renamed(__name__, {"load_compact": "load_network"})
