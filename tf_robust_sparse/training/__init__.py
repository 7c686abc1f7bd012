"""The one training step, and what happens beside it."""

from tf_robust_sparse.training.callbacks import Checkpoints, Connections, ReferenceSelection, StopOnNaN
from tf_robust_sparse.training.free_model import FreeAT, FreeRobustModel
from tf_robust_sparse.training.gradual_pruning import GradualPruning, Reweighting
from tf_robust_sparse.training.learning_rate import SCHEDULES, PerEpoch, epoch_rates, sgdw, tenfold_drops
from tf_robust_sparse.training.optimizers import CoupledAdam, CoupledRMSprop, CoupledSGD, coupled
from tf_robust_sparse.training.phases import Phase, PhaseCheck
from tf_robust_sparse.training.policies import POLICIES, gradual_rates, policy_rates
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.stored_model import StoredAT, StoredRobustModel

__all__ = [
    "POLICIES",
    "SCHEDULES",
    "Checkpoints",
    "Connections",
    "CoupledAdam",
    "CoupledRMSprop",
    "CoupledSGD",
    "FreeAT",
    "FreeRobustModel",
    "GradualPruning",
    "PerEpoch",
    "Phase",
    "PhaseCheck",
    "ReferenceSelection",
    "Reweighting",
    "RobustModel",
    "StopOnNaN",
    "StoredAT",
    "StoredRobustModel",
    "coupled",
    "epoch_rates",
    "gradual_rates",
    "policy_rates",
    "sgdw",
    "tenfold_drops",
]
