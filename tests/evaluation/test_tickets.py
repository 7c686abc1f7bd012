import csv
import json
import math

import numpy as np
import pytest

from tf_robust_sparse.evaluation import ticket_tables, tickets
from tf_robust_sparse.saving.round_files import label_of, round_directory, write_arrays

SHAPES = {"hidden_1": (16, 6), "output": (6, 4)}


def write_tree(directory, trials=2, rounds=4, offset=0.0, steps=(0, 500, 1000)):
    """Rounds whose curves are known: accuracy 0.9 + trial/100 - round/50 + offset at the last step."""
    random = np.random.default_rng(0)
    for trial in range(trials):
        masks = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
        init = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
        for number in range(rounds):
            place = round_directory(directory, trial, number)
            for name, arrays in (("init_kernels", init), ("post_kernels", init), ("masks", masks)):
                write_arrays(place / name, arrays, np.float32)
            rows = [[step, *curve_values(trial, number, step, offset)] for step in steps]
            for name in ("train", "valid", "test"):
                with (place / f"{name}.csv").open("w", newline="") as file:
                    csv.writer(file).writerows([["batch", "loss", "acc", "adv_acc"], *rows])
            left = sum(int(mask.sum()) for mask in masks.values())
            about = {
                "remaining": left,
                "entries": 120,
                "label": label_of(left, 120),
                "layers": {name: int(mask.sum()) for name, mask in masks.items()},
                "final_measures": {"test_pgd": {"accuracy": 0.9, "adversarial_accuracy": 0.1}},
            }
            (place / "summary.json").write_text(json.dumps(about))
            (place / "DONE").write_text("")
            masks = {name: mask & (random.random(mask.shape) < 0.7) for name, mask in masks.items()}
    return directory


def curve_values(trial, number, step, offset=0.0):
    """Loss, accuracy and attacked accuracy; the loss is least at step 500."""
    return (
        abs(step - 500) / 1000 + 0.1,
        0.9 + trial / 100 - number / 50 + offset - (1000 - step) / 1e4,
        0.5 + trial / 10,
    )


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    return tickets.read_rounds(write_tree(tmp_path_factory.mktemp("tree")))


def test_trials_are_gathered_by_round(rounds):
    assert [[each.trial for each in rounds[number]] for number in range(4)] == [[0, 1]] * 4
    assert rounds[0][0].label == "100.0" and rounds[0][0].remaining == 120


def test_means_and_deviations_are_those_of_the_population(rounds):
    found = tickets.spread(tickets.at_step(each.curves["test"], "acc", 1000) for each in rounds[1])
    assert found.percent() == "88.50 ± 0.50 (2)"  # 0.88 and 0.89
    assert tickets.spread([]).percent() == "-" and tickets.spread([math.nan, 0.5]).percent() == "50.00 ± 0.00 (1)"


@pytest.mark.parametrize(("step", "used"), [(30_000, 1000), (1000, 1000), (999, 500), (500, 500), (1, 0)])
def test_a_step_that_was_not_measured_stands_for_the_last_one_before(rounds, step, used):
    curve = rounds[0][0].curves["test"]
    assert tickets.at_step(curve, "acc", step) == pytest.approx(curve_values(0, 0, used)[1])


def test_early_stopping_goes_by_the_validation_loss(rounds):
    assert tickets.early_stop(rounds[2][1]) == 1


def test_curves_over_trials_use_the_steps_all_have(rounds):
    steps, mean, sd = tickets.over_trials(rounds[0], "test", "adv_acc")
    assert steps.tolist() == [0, 500, 1000]
    np.testing.assert_allclose(mean, 0.55)
    np.testing.assert_allclose(sd, 0.05)


def test_unfinished_rounds_are_left_out(tmp_path):
    write_tree(tmp_path)
    (round_directory(tmp_path, 1, 2) / "DONE").unlink()
    found = tickets.read_rounds(tmp_path)
    assert [len(found[number]) for number in sorted(found)] == [2, 2, 1, 1]
    with pytest.raises(FileNotFoundError, match="finished rounds"):
        tickets.read_rounds(tmp_path / "nothing")


@pytest.mark.parametrize("missing", ["null", "NaN"])
def test_a_number_that_is_missing_may_be_null_or_nan(missing, tmp_path):
    write_tree(tmp_path, trials=1, rounds=1)
    path = round_directory(tmp_path, 0, 0) / "summary.json"
    about = json.loads(path.read_text())
    about["final_measures"]["test_pgd"]["adversarial_accuracy"] = None
    path.write_text(json.dumps(about).replace("null", missing))
    found = tickets.read_rounds(tmp_path)[0][0]
    assert math.isnan(tickets.final_accuracy(found, "pgd", "fgsm"))
    assert found.final["test_pgd"]["accuracy"] == 0.9


@pytest.mark.parametrize("damage", ["summary.json", "test.csv"])
def test_a_damaged_record_is_named(damage, tmp_path):
    write_tree(tmp_path)
    path = round_directory(tmp_path, 1, 2) / damage
    path.write_text("{")
    with pytest.raises(ValueError, match="trial_01/prune_iter_02 must hold the record"):
        tickets.read_rounds(tmp_path)


def test_overlap_is_what_both_keep_of_what_either_keeps(rounds):
    one, other = {"a": np.array([1, 1, 0, 0])}, {"a": np.array([1, 0, 1, 0])}
    assert tickets.overlap(one, other) == pytest.approx(1 / 3)
    assert tickets.overlap(one, one) == 1 and tickets.overlap({"a": np.zeros(2)}, {"a": np.zeros(2)}) == 1
    assert tickets.mask_overlaps(rounds[0]) == (1.0, 0.0, 1)
    assert 0 < tickets.mask_overlaps(rounds[3]).mean < 0.6
    assert tickets.mask_overlaps(rounds[3], rounds[3]) == (1.0, 0.0, 2)


def test_the_accuracy_at_the_end_is_of_all_test_images_where_they_were_measured(rounds):
    found = rounds[0][0]
    _, accuracy, attacked = curve_values(0, 0, 1000)
    assert tickets.final_accuracy(found) == pytest.approx(accuracy)
    assert tickets.final_accuracy(found, "fgsm", "fgsm") == pytest.approx(attacked)
    assert tickets.final_accuracy(found, "pgd", "fgsm") == pytest.approx(0.1)
    assert math.isnan(tickets.final_accuracy(found, "fgsm", "pgd"))
    whole = found._replace(final={"test": {"accuracy": 0.8, "adversarial_accuracy": 0.3}})
    assert tickets.final_accuracy(whole) == 0.8 and tickets.final_accuracy(whole, "pgd", "pgd") == 0.3


def test_surviving_weights_and_pixels_are_those_of_the_mask(rounds):
    found = rounds[2][0]
    assert {name: len(values) for name, values in tickets.surviving_weights(found).items()} == found.layers
    pixels = tickets.input_pixels(found)
    assert pixels.shape == (4, 4) and pixels.sum() == found.layers["hidden_1"]


def test_tables_in_three_forms(tmp_path):
    ticket_tables.write_table(tmp_path / "new/table", ["a %", "b"], [["1 ± 2 (3)", "x, y"]])
    assert (tmp_path / "new/table.md").read_text() == "| a % | b |\n|---|---|\n| 1 ± 2 (3) | x, y |\n"
    assert (tmp_path / "new/table.csv").read_text() == 'a %,b\n1 ± 2 (3),"x, y"\n'
    latex = (tmp_path / "new/table.txt").read_text()
    assert latex.startswith(r"\begin{tabular}{ll}") and r"a \% & b \\" in latex and r"1 $\pm$ 2 (3) & x, y \\" in latex
