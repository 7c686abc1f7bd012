"""Training: the one training step, models that change parts of it, optimizers, schedules and callbacks."""

from tf_robust_sparse.deprecation import renamed
from tf_robust_sparse.training.averages import EMA, SWA, Average
from tf_robust_sparse.training.by_epoch import (
    POLICIES,
    SCHEDULES,
    epoch_rates,
    gradual_rates,
    policy_rates,
    radius_course,
)
from tf_robust_sparse.training.callbacks import (
    Checkpoints,
    ConnectivityLogger,
    ReferenceSelection,
    StopOnNaN,
    TestMeasures,
)
from tf_robust_sparse.training.collapse_guard import GUARD_ACTIONS, CollapseGuard
from tf_robust_sparse.training.free_model import FreeAT, FreeRobustModel
from tf_robust_sparse.training.gradual_pruning import GradualPruning, Reweighting
from tf_robust_sparse.training.learning_rate import COURSES, Course, PerEpoch, sgdw
from tf_robust_sparse.training.mask_changes import MaskChanges
from tf_robust_sparse.training.neural_pruning import NeuralPruningModel
from tf_robust_sparse.training.optimizers import CoupledAdam, CoupledSGD, FusedAdam, GatedAdam, coupled
from tf_robust_sparse.training.phases import Phase, PhaseCheck
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.round_plan import STRATEGIES, LabeledImages, RoundPlan
from tf_robust_sparse.training.rounds import Rounds
from tf_robust_sparse.training.stacked_model import StackedRobustModel
from tf_robust_sparse.training.stored_model import ATTA, MIXES, StoredRobustModel

__all__ = [
    "ATTA",
    "COURSES",
    "EMA",
    "GUARD_ACTIONS",
    "MIXES",
    "POLICIES",
    "SCHEDULES",
    "STRATEGIES",
    "SWA",
    "Average",
    "Checkpoints",
    "CollapseGuard",
    "ConnectivityLogger",
    "CoupledAdam",
    "CoupledSGD",
    "Course",
    "FreeAT",
    "FreeRobustModel",
    "FusedAdam",
    "GatedAdam",
    "GradualPruning",
    "LabeledImages",
    "MaskChanges",
    "NeuralPruningModel",
    "PerEpoch",
    "Phase",
    "PhaseCheck",
    "ReferenceSelection",
    "Reweighting",
    "RobustModel",
    "RoundPlan",
    "Rounds",
    "StackedRobustModel",
    "StopOnNaN",
    "StoredRobustModel",
    "TestMeasures",
    "coupled",
    "epoch_rates",
    "gradual_rates",
    "policy_rates",
    "radius_course",
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
