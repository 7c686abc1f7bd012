"""Train, measure and ship neural networks that are at once sparse and adversarially robust."""

from tf_robust_sparse import startup as startup  # isort: split

from tf_robust_sparse import (
    attacks,
    certify,
    data,
    evaluation,
    layers,
    models,
    objectives,
    runtime,
    saving,
    sparsity,
    training,
)
from tf_robust_sparse.pretrained import list_pretrained, load_pretrained
from tf_robust_sparse.saving import export_litert, export_network, export_onnx, load_network, save_network, shrink
from tf_robust_sparse.sparsity import sparsify
from tf_robust_sparse.startup import quiet
from tf_robust_sparse.training import RobustModel

__version__ = "0.1.0"

__all__ = [
    "RobustModel",
    "attacks",
    "certify",
    "data",
    "evaluation",
    "export_litert",
    "export_network",
    "export_onnx",
    "layers",
    "list_pretrained",
    "load_network",
    "load_pretrained",
    "models",
    "objectives",
    "quiet",
    "runtime",
    "save_network",
    "saving",
    "shrink",
    "sparsify",
    "sparsity",
    "training",
]
