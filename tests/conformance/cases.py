"""One table of every public class: a new layer, attack, objective or sparsifier joins it and inherits every check."""

import keras

from tests.networks import tiny_images
from tf_robust_sparse import attacks, layers, objectives, sparsity
from tf_robust_sparse.layers.bayesian import BayesianScale

IMAGE = (6, 6, 3)
VECTOR = (12,)

# Row -> (how to make the layer, the shape of one input). Several rows may show several sides of one class.
LAYERS = {
    "BatchNormalization": (lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-5), IMAGE),
    "BatchNormalization, unbiased": (lambda: layers.BatchNormalization(unbiased=True), IMAGE),
    "BatchNormalization, without scale": (lambda: layers.BatchNormalization(scale=False, center=False), IMAGE),
    "BayesianConv2D": (lambda: layers.BayesianConv2D(5, 3, padding="same", prior_stddev=0.1), IMAGE),
    "BayesianDense": (lambda: layers.BayesianDense(7, use_bias=False, initial_rho=-5.0), VECTOR),
    "BayesianScale": (lambda: BayesianScale(0.1, -5.0), IMAGE),
    "BetaBernoulliDropout": (lambda: layers.BetaBernoulliDropout(2.0, threshold=0.3), IMAGE),
    "BetaBernoulliDropout, units": (lambda: layers.BetaBernoulliDropout(temperature=0.2, prior=1e-3), VECTOR),
    "BinaryConv2D": (lambda: layers.BinaryConv2D(5, 3, padding="same"), IMAGE),
    "BinaryConv2D, stochastic": (lambda: layers.BinaryConv2D(5, 3, stochastic=True, use_bias=False), IMAGE),
    "BinaryDense": (lambda: layers.BinaryDense(7, activation="relu"), VECTOR),
    "Dropout": (lambda: layers.Dropout(0.4), IMAGE),
    "LearnedRateConv2D": (lambda: layers.LearnedRateConv2D(5, 3, padding="same", least_fraction=0.05), IMAGE),
    "LearnedRateDense": (lambda: layers.LearnedRateDense(7, keep_fraction=0.3, use_bias=False), VECTOR),
    "MaskedConv2D": (lambda: layers.MaskedConv2D(5, 3, strides=2, padding="same"), IMAGE),
    "MaskedDense": (lambda: layers.MaskedDense(7, activation="relu"), VECTOR),
    "MaxPooling2D": (lambda: layers.MaxPooling2D(2), IMAGE),
    "Normalization": (lambda: layers.Normalization(mean=[0.4, 0.5, 0.3], variance=[0.1, 0.2, 0.3]), IMAGE),
    "PlainConv2D": (lambda: layers.PlainConv2D(5, (3, 2), use_bias=False), IMAGE),
    "PlainDense": (lambda: layers.PlainDense(7), VECTOR),
    "RewiringConv2D": (lambda: layers.RewiringConv2D(5, 3, initial_connectivity=0.4, padding="same", seed=1), IMAGE),
    "SignedConv2D": (lambda: layers.SignedConv2D(5, 3, keep_fraction=0.3, strides=2, padding="same"), IMAGE),
    "SignedDense": (lambda: layers.SignedDense(7, keep_fraction=0.3, magnitude=0.5), VECTOR),
    "SubnetConv2D": (lambda: layers.SubnetConv2D(5, 3, keep_fraction=0.3, strides=2, padding="same"), IMAGE),
    "SubnetDense": (lambda: layers.SubnetDense(7, keep_fraction=0.3, scores_initializer="he_normal"), VECTOR),
    "RewiringDense": (lambda: layers.RewiringDense(7, initial_connectivity=0.4, activation="tanh"), VECTOR),
}

ATTACKS = {
    "NFGSM, clipped": lambda: attacks.NFGSM(8 / 255, noise=1.0, step_size=10 / 255, clip=True),
    "L2FGSM": lambda: attacks.L2FGSM(0.5),
    "L2PGD, best point": lambda: attacks.L2PGD(0.5, 0.2, 3, keep_best=True),
    "L2PGD": lambda: attacks.L2PGD(0.5, 0.2, 3, seed=2),
    "L2PGD, targeted restarts": lambda: attacks.L2PGD(0.5, 0.2, 2, restarts=2, targeted=True),
    "LinfPGD, best point": lambda: attacks.LinfPGD(8 / 255, 2 / 255, 3, keep_best=True),
    "LinfFGSM": lambda: attacks.LinfFGSM(8 / 255),
    "LinfFGSM, random start": lambda: attacks.LinfFGSM(8 / 255, random_start=True, step_size=10 / 255),
    "LinfFGSM, predicted labels": lambda: attacks.LinfFGSM(8 / 255, label="predicted"),
    "LinfPGD": lambda: attacks.LinfPGD(8 / 255, 2 / 255, 3),
    "LinfPGD, restarts": lambda: attacks.LinfPGD(8 / 255, num_steps=2, restarts=3),
}

STAGED_ATTACKS = {
    "APGD": lambda: attacks.APGD(8 / 255, num_steps=5),
    "APGD, L1": lambda: attacks.APGD(2.0, "L1", num_steps=6),
    "APGD, targeted L2": lambda: attacks.APGD(0.5, "L2", "targeted-dlr", num_steps=5, num_targets=2, seed=3),
    "FAB": lambda: attacks.FAB(8 / 255, num_steps=5, num_targets=1, restarts=2),
    "FAB, untargeted L2": lambda: attacks.FAB(0.5, "L2", targeted=False, num_steps=3),
    "Square": lambda: attacks.Square(8 / 255, num_queries=15),
    "Square, L1": lambda: attacks.Square(2.0, "L1", num_queries=10),
    "Square, L2": lambda: attacks.Square(0.5, "L2", num_queries=10, seed=4),
}

MINIMUM_NORM_ATTACKS = {
    "FMN": lambda: attacks.FMN("Linf", 10),
    "FMN, L0": lambda: attacks.FMN("L0", 10),
    "DDN": lambda: attacks.DDN(10),
    "DeepFool": lambda: attacks.DeepFool("L2", 5, num_candidates=2),
    "SigmaZero": lambda: attacks.SigmaZero(10),
    "HOFMN": lambda: attacks.HOFMN(10),
}

OBJECTIVES = {
    "AT": lambda: objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2)),
    "CrownIBP": lambda: objectives.CrownIBP(0.02, final_beta=0.5),
    "CrownIBP, with a clean loss": lambda: objectives.CrownIBP(0.02, final_kappa=0.5),
    "GradAlign": lambda: objectives.GradAlign(objectives.AT(attacks.NFGSM(8 / 255))),
    "IBP": lambda: objectives.IBP(0.02),
    "MTLIBP": lambda: objectives.MTLIBP(attacks.LinfPGD(0.03, num_steps=2), 0.02, 0.5),
    "CCIBP": lambda: objectives.CCIBP(attacks.LinfPGD(0.02, num_steps=1), 0.02, 0.5),
    "ExpIBP": lambda: objectives.ExpIBP(attacks.LinfPGD(0.02, num_steps=1), 0.02, 0.5),
    "SABR": lambda: objectives.SABR(attacks.LinfPGD(0.02, num_steps=2), 0.02, 0.5),
    "AT, as the code of binary sub-networks": lambda: objectives.AT(
        attacks.LinfPGD(8 / 255, 2 / 255, 2, keep_best=True), label_smoothing=0.1
    ),
    "AWP": lambda: objectives.AWP(objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2)), 0.05),
    "CleanAndAdversarial": lambda: objectives.CleanAndAdversarial(attacks.LinfPGD(8 / 255, 2 / 255, 2)),
    "CleanAndAdversarial, predicted labels": lambda: objectives.CleanAndAdversarial(
        attacks.LinfPGD(8 / 255, 2 / 255, 2, label="predicted"), weight=0.3, label_smoothing=0.1
    ),
    "CleanAndAdversarial, one batch": lambda: objectives.CleanAndAdversarial(
        attacks.LinfPGD(8 / 255, 2 / 255, 2), joint=True
    ),
    "Consistency": lambda: objectives.Consistency(objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2))),
    "Consistency, TRADES": lambda: objectives.Consistency(
        objectives.TRADES(attacks.LinfPGD(8 / 255, 2 / 255, 2)), 0.5, augmentation="shift", flip=False
    ),
    "CutMix": lambda: objectives.CutMix(objectives.TRADES(attacks.LinfPGD(8 / 255, 2 / 255, 2))),
    "CutMix, AT": lambda: objectives.CutMix(objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2), 0.1), groups=2),
    "DKL": lambda: objectives.DKL(attacks.LinfPGD(8 / 255, 2 / 255, 2)),
    "L1Penalty": lambda: objectives.L1Penalty(objectives.AT(attacks.L2PGD(0.5, 0.2, 2)), 1e-4),
    "MART": lambda: objectives.MART(attacks.LinfPGD(8 / 255, 2 / 255, 2), beta=5.0),
    "MAT": lambda: objectives.MAT(attacks.L2PGD(0.5, 0.2, 2)),
    "MixTrain": lambda: objectives.MixTrain(objectives.EpochwiseEpsilon(0.02, 2, 3), num_images=2, probability=1.0),
    "Natural": lambda: objectives.Natural(),
    "Reweighted": lambda: objectives.Reweighted(objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2)), "prob"),
    "Reweighted, TRADES": lambda: objectives.Reweighted(
        objectives.TRADES(attacks.LinfPGD(8 / 255, 2 / 255, 2)), "comp_nat_prob"
    ),
    "ScheduledRadius": lambda: objectives.ScheduledRadius(
        objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2, keep_best=True)), objectives.TabledEpsilon((0.02, 0.03), 3)
    ),
    "ScheduledRadius, TRADES in l2": lambda: objectives.ScheduledRadius(
        objectives.TRADES(attacks.L2PGD(0.5, 0.2, 2)), objectives.LinearEpsilon(0.5, 0, 3, start=0.1)
    ),
    "Natural, smooth labels": lambda: objectives.Natural(label_smoothing=0.1),
    "S2AP": lambda: objectives.S2AP(objectives.AT(attacks.LinfPGD(8 / 255, 2 / 255, 2)), 0.05),
    "Stability": lambda: objectives.Stability(0.1, beta=2.0),
    "Stability, noisy images alone": lambda: objectives.Stability(0.1, beta=None),
    "VulnerabilitySuppression": lambda: objectives.VulnerabilitySuppression(
        objectives.CleanAndAdversarial(attacks.LinfPGD(8 / 255, 2 / 255, 2), joint=True), 0.1
    ),
    "VulnerabilitySuppression, the largest": lambda: objectives.VulnerabilitySuppression(
        objectives.TRADES(attacks.LinfPGD(8 / 255, 2 / 255, 2)), 0.1, kind="max"
    ),
    "TRADES": lambda: objectives.TRADES(attacks.LinfPGD(8 / 255, 2 / 255, 2), beta=6.0),
}

# Row -> (how to make the sparsifier, the parametrization it works on).
SPARSIFIERS = {
    "BlockPruning": (lambda: sparsity.BlockPruning(0.1, (1, 2)), "masked"),
    "ChannelMagnitudePruning": (lambda: sparsity.ChannelMagnitudePruning(0.1), "masked"),
    "ChannelMagnitudePruning, gradual": (
        lambda: sparsity.ChannelMagnitudePruning(
            0.1, sparsity.schedules.polynomial(0.1, end_step=4, frequency=1), "global", "batch_norm"
        ),
        "masked",
    ),
    "ConnectivitySampling": (lambda: sparsity.ConnectivitySampling(0.1, seed=4, check_invariants=True), "rewiring"),
    "ConnectivitySampling, exact start": (
        lambda: sparsity.ConnectivitySampling(0.1, init_policy="exact", layer_prior="target", l1=1e-4),
        "rewiring",
    ),
    "MagnitudePruning": (lambda: sparsity.MagnitudePruning(0.1), "masked"),
    "MagnitudePruning, gradual": (
        lambda: sparsity.MagnitudePruning(0.1, sparsity.schedules.polynomial(0.1, end_step=4, frequency=1)),
        "masked",
    ),
    "MagnitudePruning, global": (lambda: sparsity.MagnitudePruning(0.1, allocation="global"), "masked"),
    "NM": (lambda: sparsity.NM(1, 8, decay=0.01), "masked"),
    "NM, fixed": (lambda: sparsity.NM(1, 8, fixed=True), "masked"),
    "OBS": (lambda: sparsity.OBS(tiny_images(64)[0], 0.1), "masked"),
    "FlyingBird": (lambda: sparsity.FlyingBird(0.1, interval=3, late_interval=2, end_step=8), "masked"),
    "RigL": (lambda: sparsity.RigL(0.1, interval=3, end_step=100), "masked"),
    "SET": (lambda: sparsity.SET(0.1, interval=3, end_step=100, allocation="igq"), "masked"),
}

# Public classes without a row, each with its reason.
ABSTRACT = {
    "KLPenalty": "needs variational layers; see tests/objectives/test_kl_penalty.py",
    "KernelLayer": "an operation and a parametrization are mixed into it",
    "DynamicSparsity": "lacks its growth scores",
    "FlyingBirdPlus": "watches validation; see tests/sparsity/test_flying_bird_plus.py",
    "LearnedRates": "may need several epochs to reach its budget; see tests/sparsity/test_learned_rates.py",
    "Losses": "a record",
    "MaskSparsifier": "lacks its masks",
    "Prunable": "a record",
    "GradientAttack": "lacks a norm",
    "MinimumNormAttack": "lacks its steps",
    "EpochwiseEpsilon": "a schedule, which objectives take",
    "EpsilonSchedule": "a schedule, which objectives take",
    "LinearEpsilon": "a schedule, which objectives take",
    "SmoothedEpsilon": "a schedule, which objectives take",
    "TabledEpsilon": "a schedule, which objectives take",
    "Objective": "lacks a loss",
    "AttackObjective": "lacks a loss",
    "Sparsifier": "decides nothing",
}

# Folder -> (its module, its rows as factories).
TABLES = {
    "layers": (layers, {name: make for name, (make, _) in LAYERS.items()}),
    "attacks": (attacks, ATTACKS | STAGED_ATTACKS | MINIMUM_NORM_ATTACKS),
    "objectives": (objectives, OBJECTIVES),
    "sparsity": (sparsity, {name: make for name, (make, _) in SPARSIFIERS.items()}),
}


def network_of(layer, shape, classes=4):
    """A network that ends in logits around one layer."""
    x = inputs = keras.Input(shape)
    x = layer(x)
    if len(x.shape) > 2:
        x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name="around")
