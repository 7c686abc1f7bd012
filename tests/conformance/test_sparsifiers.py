"""What every sparsifier promises."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.cases import SPARSIFIERS
from tests.networks import mirrored, tiny_dataset, tiny_network
from tf_robust_sparse import layers, objectives
from tf_robust_sparse.sparsity import DynamicSparsity
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.training import RobustModel, sgdw

STEPS = 8


def trained(name, strategy=None):
    make, kernel = SPARSIFIERS[name]
    with (strategy or tf.distribute.get_strategy()).scope():
        model = RobustModel(tiny_network(kernel, connectivity=0.05), objectives.Natural(), make())
        model.compile(sgdw(0.2, 5e-4))
    model.fit(tiny_dataset(16 * STEPS), verbose=0)
    return model


trained_alone = functools.cache(trained)  # for tests that only read it


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_the_budget_holds_in_the_kernels_and_in_the_momentum(name):
    model = trained_alone(name)
    sparsifier = model.sparsifier
    counts = sparsifier.count()
    assert sum(counts) <= sparsifier.budget
    if "Channel" not in name:  # what others keep is a share of the entries
        # An eighth of the kernels with 8 inputs or more, and a tenth of the pairs of each kernel.
        assert sparsifier.budget == {"NM": 324, "BlockPruning": 264}.get(name.partition(",")[0], 266)
        assert sum(counts) > 0.95 * sparsifier.budget  # each of three kernels rounds down
    assert sparsifier.within_budget()
    nonzero = sum(int(tf.math.count_nonzero(layer.effective_kernel)) for layer in sparsifier.layers)
    assert nonzero <= sum(counts)
    if not isinstance(sparsifier, DynamicSparsity):  # whose connections begin at 0
        assert nonzero == sum(counts)
    sparsifier.check(model.network)
    for layer in layers.kernel_layers(model.network):
        source = layer.theta if hasattr(layer, "theta") else layer.kernel
        off = np.array(layer.effective_kernel) == 0
        if name == "NM":  # which goes on training what is off
            continue
        for slot in slots(model.optimizer, source):
            assert (np.array(slot)[off] == 0).all()


# Each class, and of several rows of one class those that decide most often.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ChannelMagnitudePruning, gradual", marks=pytest.mark.full),
        "ConnectivitySampling",
        pytest.param("ConnectivitySampling, exact start", marks=pytest.mark.full),
        pytest.param("MagnitudePruning, gradual", marks=pytest.mark.full),
    ],
)
def test_replicas_agree(name):
    model = trained(name, mirrored())
    for variable in [*model.network.variables, *model.optimizer.variables]:
        first, second = mirrored().experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)
    model.sparsifier.check(model.network)


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_description_and_turnover_are_plain(name):
    model = trained_alone(name)
    description, turnover = model.sparsifier.describe(), model.sparsifier.turnover()
    assert json.loads(json.dumps(description)) == description
    assert json.loads(json.dumps(turnover)) == turnover
    assert description["sparsifier"] == name.partition(",")[0]
    assert description["connectivity"] == (0.125 if "NM" in name else 0.1)


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_another_parametrization_is_refused(name):
    make, _ = SPARSIFIERS[name]
    with pytest.raises(ValueError, match="needs a network built with kernel="):
        make().attach(tiny_network("plain"))
