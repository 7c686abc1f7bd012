"""Small models that the tests of RobustModel train."""

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import objectives
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.sparsity import ConnectivitySampling, MagnitudePruning
from tf_robust_sparse.training import RobustModel, sgdw

ATTACK = LinfPGD(epsilon=0.05, step_size=0.03, num_steps=2)
OBJECTIVES = {
    "natural": objectives.Natural(),
    "at": objectives.AT(ATTACK),
    "mat": objectives.MAT(ATTACK),
    "trades": objectives.TRADES(ATTACK, beta=1.0),
    "mart": objectives.MART(ATTACK, beta=1.0),
    "suppressed": objectives.VulnerabilitySuppression(objectives.TRADES(ATTACK, beta=1.0), 0.1),
}
# Name -> (parametrization, sparsifier). "dense" is the twin of the other two.
SPARSIFIERS = {
    "dense": ("plain", lambda seed=0: None),
    "connectivity_sampling": ("rewiring", lambda seed=0: ConnectivitySampling(0.3, init_policy="exact", seed=seed)),
    "magnitude": ("masked", lambda seed=0: MagnitudePruning(0.3)),
}
X, Y = tiny_images(16)


def compiled(objective="natural", sparsifier="connectivity_sampling", seed=0, optimizer=None, **arguments):
    kernel, make = SPARSIFIERS[sparsifier]
    network = tiny_network(kernel)
    model = RobustModel(network, OBJECTIVES[objective], make(seed), seed=seed, **arguments)
    model.compile(optimizer or sgdw(0.05, 5e-4), metrics=["accuracy"])
    return model
