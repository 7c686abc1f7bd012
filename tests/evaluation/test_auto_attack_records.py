"""What AutoAttack writes down: its books, its log, and the state that an interrupted run goes on from."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_network
from tests.evaluation.auto_attacks import EPSILON, SOME, evaluated, quick
from tf_robust_sparse.attacks import APGD, FAB, Square
from tf_robust_sparse.evaluation import AutoAttack, ensemble_run
from tf_robust_sparse.evaluation.safety import DYNAMIC_DEFENSE


@pytest.fixture(scope="module")
def whole(some, tmp_path_factory):
    """All four attacks on batches of 32, which many tests only read."""
    return evaluated(some, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("norm", ["Linf", *(pytest.param(norm, marks=pytest.mark.full) for norm in ("L1", "L2"))])
def test_the_books_balance(norm, some, whole):
    x, y = some
    network = toy_network()
    if norm == "Linf":
        result = whole.result
    else:
        by_gradients = {"L1": APGD(0.4, "L1", num_steps=10), "L2": FAB(0.1, "L2", num_steps=5, num_targets=2)}[norm]
        attacks = [by_gradients, Square(EPSILON[norm], norm, num_queries=100)]
        result = quick(network, norm, attacks=attacks).run_standard_evaluation(x, y)
    clean = np.argmax(network(x), -1) == y
    broken_by = result["broken_by"]
    assert result["clean_accuracy"] == clean.mean()
    np.testing.assert_array_equal(broken_by == -2, ~clean)
    assert result["robust_accuracy"] == (broken_by == -1).mean() > 0
    assert sum(row["broken"] for row in result["attacks"].values()) == (broken_by >= 0).sum() > 0
    answers = np.argmax(network(result["x_adv"]), -1)
    np.testing.assert_array_equal(answers == y, broken_by == -1)
    np.testing.assert_array_equal(answers, result["y_adv"])
    np.testing.assert_array_equal((result["x_adv"] != x).any((1, 2, 3)), broken_by >= 0)
    assert np.isfinite(result["x_adv"]).all() and result["x_adv"].min() >= 0 and result["x_adv"].max() <= 1
    slack = 1 + 1e-5 if norm == "Linf" else 1 + 1e-4 / EPSILON[norm]
    assert result["largest_perturbation"] <= EPSILON[norm] * slack
    assert json.dumps({name: value for name, value in result.items() if not isinstance(value, np.ndarray)})


def copied(whole, folder):
    """The state file of a finished evaluation in another folder, with its examples."""
    for file in (whole.state, whole.state.with_name("state.json.npz")):
        shutil.copy(file, folder)
    return folder / "state.json"


@pytest.mark.parametrize("file", ["state.json", "state.json.npz"])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 no archive"])
def test_a_damaged_state_file_is_told_of_and_left_alone(file, content, some, whole, tmp_path):
    state = copied(whole, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.json .* damaged; delete both"):
        quick(toy_network(), state_path=state).run_standard_evaluation(*some)
    assert (tmp_path / file).read_bytes() == content


def edited(state, **changes):
    """Changes entries of a state file, and its digest with them."""
    content = json.loads(state.read_text())
    examples = state.with_name("state.json.npz")
    with np.load(examples) as archive:
        arrays = dict(archive)
    for name, change in changes.items():
        change(arrays[name] if name in arrays else content[name])
    with examples.open("wb") as file:
        np.savez(file, **arrays)
    content.pop("digest")
    state.write_text(json.dumps({**content, "digest": ensemble_run._digest(content, examples.read_bytes())}))


def test_an_edited_state_is_refused(some, tmp_path):
    """First with a digest that does not match, then with one made for the edited content."""
    state = tmp_path / "state.json"
    short = {"attacks": [APGD(0.01, num_steps=10)], "state_path": state}
    quick(toy_network(), **short).run_standard_evaluation(*some)
    files = {file: file.read_bytes() for file in (state, state.with_name("state.json.npz"))}
    standing = json.loads(state.read_text())["robust_flags"]
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "robust_flags": [True] * SOME}))
    with pytest.raises(ValueError, match="does not match its digest"):
        quick(toy_network(), **short).check(*some)

    def all_stand(flags):
        flags[:] = [True] * SOME

    def far(examples):
        examples[0] = 7.0

    def beyond_the_ball(examples):
        examples[0] = 1 - examples[0]

    def clean(examples):
        broken = np.flatnonzero(~np.array(standing) & (np.argmax(toy_network()(some[0]), -1) == some[1]))
        examples[:] = some[0][broken]

    def no_attack(numbers):
        numbers[0] = 5

    for changes, message in (
        ({"robust_flags": all_stand}, "robust_flags that its adversarial examples do not explain"),
        ({"x_adv": far}, "outside the ball or outside"),
        ({"x_adv": beyond_the_ball}, "outside the ball or outside"),
        ({"x_adv": clean}, "that the network classifies correctly"),
        ({"by": no_attack}, "an attack that does not exist"),
    ):
        for file, original in files.items():
            file.write_bytes(original)
        edited(state, **changes)
        with pytest.raises(ValueError, match=message):
            quick(toy_network(), **short).check(*some)
    for file, original in files.items():
        file.write_bytes(original)
    quick(toy_network(), **short).check(*some)


def test_a_state_of_another_run_is_refused(some, whole, tmp_path):
    state = copied(whole, tmp_path)
    np.testing.assert_array_equal(
        quick(toy_network(), state_path=state).run_standard_evaluation(*some)["broken_by"], whole.result["broken_by"]
    )
    x, y = some
    for model, images in ((toy_network(), x * 0.99), (lambda v: toy_network()(1 - v), x)):
        with pytest.raises(ValueError, match="belongs to another"):
            quick(model, state_path=state).run_standard_evaluation(images, y)
    with pytest.raises(ValueError, match="belongs to another"):
        quick(toy_network(), state_path=state, attacks=[Square(0.01, num_queries=5)]).run_standard_evaluation(x, y)


def test_a_state_of_a_network_with_the_same_predictions_is_refused(some, tmp_path):
    """A callable has no weights to compare: its clean logits tell it from another one."""
    x, y = some
    state = tmp_path / "state.json"
    short = {"attacks": [Square(0.01, num_queries=5)], "state_path": state}
    one, other = (lambda v: toy_network()(v)), (lambda v: 1.01 * toy_network()(v))
    np.testing.assert_array_equal(np.argmax(one(x), -1), np.argmax(other(x), -1))
    quick(one, **short).run_standard_evaluation(x, y)
    for ask in (AutoAttack.check, AutoAttack.run_standard_evaluation):
        with pytest.raises(ValueError, match="belongs to another"):
            ask(quick(other, **short), x, y)
    rounded_otherwise = lambda v: toy_network()(v) * (1 + 1e-5)  # noqa: E731
    quick(rounded_otherwise, **short).check(x, y)


def test_a_state_of_a_randomized_network_is_taken_up(some, tmp_path):
    state = tmp_path / "state.json"
    noisy = lambda x: toy_network()(x + tf.random.normal(tf.shape(x), stddev=0.01))  # noqa: E731
    short = {"attacks": [Square(0.01, num_queries=5)], "state_path": state}
    quick(noisy, **short).run_standard_evaluation(*some)
    quick(noisy, **short).check(*some)
    with pytest.raises(ValueError, match="belongs to another"):
        quick(lambda x: 10 * noisy(x), **short).check(*some)


def test_a_check_attacks_nothing_and_writes_nothing(some, tmp_path):
    state = tmp_path / "state.json"
    attack = quick(toy_network(), state_path=state)
    attack.check(*some)
    assert not attack.compiled and not state.exists()
    state.write_text("{")
    with pytest.raises(ValueError, match="damaged; delete both"):
        attack.check(*some)


def test_log_lines_are_the_usual_ones(whole):
    lines = whole.log.splitlines()
    assert lines[0] == "using custom version including apgd-ce, apgd-t, fab-t, square."
    assert lines[1] == "initial accuracy: 95.00%"
    assert lines[2].startswith("apgd-ce - 1/2 - ") and lines[2].endswith(" out of 32 successfully perturbed")
    assert any(line.startswith("robust accuracy after APGD-CE: ") and "(total time " in line for line in lines)
    assert lines[-1].startswith("robust accuracy: ")
    assert [line for line in lines if line.startswith("note: ")] == [f"note: {DYNAMIC_DEFENSE}"]
    assert lines[-2].startswith("max Linf perturbation: 0.01000, nan in tensor: 0, max: ")
    assert "robust accuracy after SQUARE" in whole.screen
