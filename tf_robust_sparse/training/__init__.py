"""The one training step, and what happens beside it."""

from tf_robust_sparse.training.callbacks import Checkpoints, Connections, ReferenceSelection, StopOnNaN
from tf_robust_sparse.training.learning_rate import sgdw, tenfold_drops
from tf_robust_sparse.training.robust_model import RobustModel

__all__ = [
    "Checkpoints",
    "Connections",
    "ReferenceSelection",
    "RobustModel",
    "StopOnNaN",
    "sgdw",
    "tenfold_drops",
]
