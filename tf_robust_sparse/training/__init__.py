"""The one training step, and what happens beside it."""

from tf_robust_sparse.training.callbacks import Checkpoints, Connections, ReferenceSelection, StopOnNaN
from tf_robust_sparse.training.free_model import FreeAT, FreeRobustModel
from tf_robust_sparse.training.learning_rate import SCHEDULES, PerEpoch, epoch_rates, sgdw, tenfold_drops
from tf_robust_sparse.training.optimizers import CoupledAdam, CoupledRMSprop, CoupledSGD, coupled
from tf_robust_sparse.training.phases import Phase, PhaseCheck
from tf_robust_sparse.training.robust_model import RobustModel

__all__ = [
    "SCHEDULES",
    "Checkpoints",
    "Connections",
    "CoupledAdam",
    "CoupledRMSprop",
    "CoupledSGD",
    "FreeAT",
    "FreeRobustModel",
    "PerEpoch",
    "Phase",
    "PhaseCheck",
    "ReferenceSelection",
    "RobustModel",
    "StopOnNaN",
    "coupled",
    "epoch_rates",
    "sgdw",
    "tenfold_drops",
]
