"""Gates on a residual network from the command line, and what counts as a connection of it."""

import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import results, run_script
from tf_robust_sparse.cli import networks, protocol_table
from tf_robust_sparse.models import resnet

SCRIPT = "run_neural_pruning"


def test_closed_gates_of_a_residual_network_do_not_count(tmp_path, monkeypatch):
    """With one block."""
    monkeypatch.setitem(resnet.BUDGET_WIDTHS, "p1", (6,))
    monkeypatch.setitem(resnet._BLOCKS, 18, (resnet._basic, (1,)))
    monkeypatch.setattr(protocol_table, "TIMED_FOR", 0.01)
    base = trs.models.build("resnet18_p1", input_shape=(28, 28, 1), seed=0)
    trs.save_network(base, tmp_path / "base")
    few = ("--model=resnet18_p1", "--data=fashion_mnist_sample", "--train_examples=32", "--batch_size=16")
    few += ("--test_examples=8", "--n_epochs=1", "--eps=0.1", "--step_size=0.1", "--pgd_steps=1", "--pgd_iters=1")
    gated = (*few, "--mode=bbd", "--adv_train", "--thres=0.69")  # they begin at 0.68, so all are closed
    done = run_script(SCRIPT, *gated, f"--init_from={tmp_path / 'base'}", f"--output_dir={tmp_path / 'run'}").expect()
    found = results(tmp_path / "run")
    assert found["efficiency"] == {"active_units": [0], "units": [6], "sparsity": 100}
    assert set(found["white_box"]["vulnerability_per_layer"]) == {
        *("stem_relu", "stage1_block1_relu1", "stage1_block1_relu")
    }
    network = trs.load_network(tmp_path / "run")
    (gate,) = trs.layers.gates(network)
    for is_open in (0, 2):
        gate.a_raw.assign([3.0] * is_open + [0.0] * (6 - is_open))  # 0.75 and 0.41
        counted, closed = networks.connections(network), (6 - is_open) * 9 * 6
        left = [each["nonzero"] for each in counted["layers"]]  # of the stem, two convolutions and the classifier
        assert left[:2] == [54, 324 - closed] and left[3] == counted["layers"][3]["entries"]
        assert left[2] in (324 - closed, 324 - closed + 54)  # one constant channel may stay
        assert sum(left) == counted["nonzero"] == pytest.approx(counted["connectivity"] * counted["prunable"])
        if not is_open:
            assert {name: found[name] for name in counted} == counted
            assert f"{found['nonzero']} of {found['prunable']} kernel entries" in done.out
    assert networks.weight_facts(network)["weights"]["nonzero"] == counted["nonzero"]
    whole, smaller = (protocol_table.measure(each) for each in (base, network))
    assert smaller["bytes"] < whole["bytes"] - 4 * closed and smaller["multiply_adds"] == whole["multiply_adds"]
