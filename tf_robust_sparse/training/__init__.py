"""The one training step, and what happens beside it."""

from tf_robust_sparse.training.averages import EMA, SWA, Average
from tf_robust_sparse.training.by_epoch import (
    POLICIES,
    RADIUS_COURSES,
    SCHEDULES,
    epoch_rates,
    gradual_rates,
    policy_rates,
    radius_course,
)
from tf_robust_sparse.training.callbacks import Checkpoints, Connections, ReferenceSelection, StopOnNaN, TestMeasures
from tf_robust_sparse.training.free_model import FreeAT, FreeRobustModel
from tf_robust_sparse.training.gradual_pruning import GradualPruning, Reweighting
from tf_robust_sparse.training.learning_rate import COURSES, Course, PerEpoch, sgdw, tenfold_drops
from tf_robust_sparse.training.mask_changes import MaskChanges, save_masks
from tf_robust_sparse.training.neural_pruning import NeuralPruningModel
from tf_robust_sparse.training.optimizers import CoupledAdam, CoupledRMSprop, CoupledSGD, FusedAdam, GatedAdam, coupled
from tf_robust_sparse.training.phases import Phase, PhaseCheck
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.round_plan import STRATEGIES, Images, Plan
from tf_robust_sparse.training.rounds import Rounds
from tf_robust_sparse.training.stored_model import MIXES, StoredAT, StoredRobustModel
from tf_robust_sparse.training.trials import Measure, State, Trials

__all__ = [
    "COURSES",
    "EMA",
    "MIXES",
    "POLICIES",
    "RADIUS_COURSES",
    "SCHEDULES",
    "STRATEGIES",
    "SWA",
    "Average",
    "Checkpoints",
    "Connections",
    "CoupledAdam",
    "CoupledRMSprop",
    "CoupledSGD",
    "Course",
    "FreeAT",
    "FreeRobustModel",
    "FusedAdam",
    "GatedAdam",
    "GradualPruning",
    "Images",
    "MaskChanges",
    "Measure",
    "NeuralPruningModel",
    "PerEpoch",
    "Phase",
    "PhaseCheck",
    "Plan",
    "ReferenceSelection",
    "Reweighting",
    "RobustModel",
    "Rounds",
    "State",
    "StopOnNaN",
    "StoredAT",
    "StoredRobustModel",
    "TestMeasures",
    "Trials",
    "coupled",
    "epoch_rates",
    "gradual_rates",
    "policy_rates",
    "radius_course",
    "save_masks",
    "sgdw",
    "tenfold_drops",
]
