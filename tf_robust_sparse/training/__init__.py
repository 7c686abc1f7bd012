"""The one training step, and what happens beside it."""

from tf_robust_sparse.training.callbacks import Checkpoints, Connections, ReferenceSelection, StopOnNaN
from tf_robust_sparse.training.free_model import FreeAT, FreeRobustModel
from tf_robust_sparse.training.learning_rate import SCHEDULES, PerEpoch, epoch_rates, sgdw, tenfold_drops
from tf_robust_sparse.training.optimizers import CoupledAdam, CoupledRMSprop, CoupledSGD, FusedAdam, coupled
from tf_robust_sparse.training.phases import Phase, PhaseCheck
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.rounds import STRATEGIES, Images, Plan, Rounds
from tf_robust_sparse.training.trials import Measure, State, Trials

__all__ = [
    "SCHEDULES",
    "STRATEGIES",
    "Checkpoints",
    "Connections",
    "CoupledAdam",
    "CoupledRMSprop",
    "CoupledSGD",
    "FreeAT",
    "FreeRobustModel",
    "FusedAdam",
    "Images",
    "Measure",
    "PerEpoch",
    "Phase",
    "PhaseCheck",
    "Plan",
    "ReferenceSelection",
    "RobustModel",
    "Rounds",
    "State",
    "StopOnNaN",
    "Trials",
    "coupled",
    "epoch_rates",
    "sgdw",
    "tenfold_drops",
]
