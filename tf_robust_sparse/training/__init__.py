"""Training: the one training step, models that change parts of it, optimizers, schedules and callbacks."""

from tf_robust_sparse.deprecation import renamed
from tf_robust_sparse.training.averages import EMA, SWA
from tf_robust_sparse.training.by_epoch import policy_rates
from tf_robust_sparse.training.callbacks import Checkpoints, ConnectivityLogger, StopOnNaN
from tf_robust_sparse.training.collapse_guard import CollapseGuard
from tf_robust_sparse.training.free_model import FreeAT, FreeRobustModel
from tf_robust_sparse.training.learning_rate import PerEpoch, sgdw
from tf_robust_sparse.training.neural_pruning import NeuralPruningModel
from tf_robust_sparse.training.optimizers import CoupledSGD, GatedAdam, coupled
from tf_robust_sparse.training.phases import Phase, PhaseCheck
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.round_plan import LabeledImages, RoundPlan
from tf_robust_sparse.training.rounds import Rounds
from tf_robust_sparse.training.stacked_model import StackedRobustModel
from tf_robust_sparse.training.stored_model import ATTA, StoredRobustModel

__all__ = [
    "ATTA",
    "EMA",
    "SWA",
    "Checkpoints",
    "CollapseGuard",
    "ConnectivityLogger",
    "CoupledSGD",
    "FreeAT",
    "FreeRobustModel",
    "GatedAdam",
    "LabeledImages",
    "NeuralPruningModel",
    "PerEpoch",
    "Phase",
    "PhaseCheck",
    "RobustModel",
    "RoundPlan",
    "Rounds",
    "StackedRobustModel",
    "StopOnNaN",
    "StoredRobustModel",
    "coupled",
    "policy_rates",
    "sgdw",
]

__getattr__ = renamed(
    __name__,
    {
        "Connections": "ConnectivityLogger",
        "Images": "LabeledImages",
        "Plan": "RoundPlan",
        "StoredAT": "ATTA",
        "Trials": "StackedRobustModel",
    },
)
