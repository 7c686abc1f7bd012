import csv
import itertools
import json
import shutil

import numpy as np
import pytest

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, models, objectives
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.saving.round_files import is_done, read_arrays, round_directory
from tf_robust_sparse.sparsity.iterative_magnitude import iterative_magnitude
from tf_robust_sparse.training import LabeledImages, RoundPlan, Rounds, StackedRobustModel
from tf_robust_sparse.training.optimizers import FusedAdam
from tf_robust_sparse.training.rounds import read_state

FRACTIONS = {"hidden_1": 0.2, "hidden_2": 0.2, "output": 0.1}
TRAIN, VALID, TEST = (
    LabeledImages(*tiny_images(110, seed=1)),
    LabeledImages(*tiny_images(30, seed=2), 0.1),
    LabeledImages(*tiny_images(30, seed=3)),
)


class Counting(objectives.CleanAndAdversarial):
    """Counts how often the training step is traced."""

    traces = 0

    def loss(self, *args):
        self.traces += 1
        return super().loss(*args)


def dense(seed):
    return unbiased_dense_300_100(10, (12, 12, 1), seed=seed)


def prepare(directory, plan, trials=(0,), build=dense, fractions=FRACTIONS, **kwargs):
    attack = attacks.LinfFGSM(0.3, label="predicted")
    objective = Counting(attack, label_smoothing=0.1)
    model = StackedRobustModel(models.stack([build(seed) for seed in range(len(trials))]), objective, attack)
    model.compile(FusedAdam(1.2e-3), steps_per_execution=plan.steps_per_call)
    kwargs.setdefault("say", lambda line: None)
    held_out = {"valid": VALID, "test": TEST}
    return Rounds(model, build, iterative_magnitude(fractions), TRAIN, held_out, plan, directory, trials, **kwargs)


def plan(**settings):
    return RoundPlan(**{"train_iters": 50, "prune_iters": 2, "eval_every": 20, "batch_size": 16, **settings})


def kernels(directory, number, name, trial=0):
    return read_arrays(round_directory(directory, trial, number) / name)


def equal(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def rows(directory, number, name, trial=0):
    with (round_directory(directory, trial, number) / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def everything(directory, rounds=3, trials=(0,)):
    """All that the rounds leave but times."""
    found = {}
    for trial in trials:
        for number in range(rounds):
            for name in ("init_kernels", "post_kernels", "masks", "next_masks"):
                found[trial, number, name] = {
                    key: value.tobytes() for key, value in kernels(directory, number, name, trial).items()
                }
            for name in ("train", "valid", "test"):
                found[trial, number, name] = rows(directory, number, name, trial)
    return found


@pytest.fixture(scope="module")
def finished_rounds(tmp_path_factory):
    rounds = prepare(tmp_path_factory.mktemp("rounds"), plan(), (0, 1))
    rounds.run()
    return rounds


@pytest.fixture(scope="module")
def finished(finished_rounds):
    """The directory of a finished run of two trials; not to be changed."""
    return finished_rounds.directory


def test_masks_only_shrink_and_by_the_rule(finished):
    for trial in (0, 1):
        masks = [kernels(finished, number, "masks", trial) for number in range(3)]
        assert all(mask.all() for mask in masks[0].values())
        for before, after in itertools.pairwise(masks):
            for name, fraction in FRACTIONS.items():
                assert (after[name] <= before[name]).all()
                n = int(before[name].sum())
                assert int(after[name].sum()) == n - round(fraction * n) - 1


def test_arrays_are_float32_without_pickles_and_curves_have_the_published_columns(finished):
    place = round_directory(finished, 1, 2)
    assert {path.name for path in place.iterdir()} == {
        *("init_kernels", "post_kernels", "masks", "next_masks", "train.csv", "valid.csv", "test.csv"),
        *("summary.json", "DONE"),
    }
    for name in ("init_kernels", "post_kernels", "masks"):
        assert {key: value.dtype for key, value in read_arrays(place / name).items()} == dict.fromkeys(
            ("hidden_1", "hidden_2", "output"), np.float32
        )
    for name in ("train", "valid", "test"):
        assert list(rows(finished, 2, name)[0])[:4] == ["batch", "loss", "acc", "adv_acc"]


def test_original_rewinds_to_the_first_weights_and_trials_differ(finished):
    for number in (1, 2):
        assert equal(kernels(finished, number, "init_kernels"), kernels(finished, 0, "init_kernels"))
        assert not equal(kernels(finished, number, "post_kernels"), kernels(finished, 0, "post_kernels"))
    first, second = (kernels(finished, 0, "init_kernels", trial) for trial in (0, 1))
    assert all((first[name] != second[name]).all() for name in first)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"rewind_step": "trained"}, (0, "post_kernels"), marks=pytest.mark.full),
        pytest.param({"strategy": "reinit_none"}, ("before", "post_kernels"), marks=pytest.mark.full),
        pytest.param({"strategy": "reinit_rand"}, None, marks=pytest.mark.full),
        ({"rewind_step": 10}, (0, "rewind_kernels")),
    ],
)
def test_where_rounds_begin(settings, expected, tmp_path):
    prepare(tmp_path, plan(**settings)).run()
    begun = [kernels(tmp_path, number, "init_kernels") for number in range(3)]
    if expected is None:
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert all((begun[i][name] != begun[j][name]).all() for name in begun[i])
        return
    for number in (1, 2):
        origin = number - 1 if expected[0] == "before" else expected[0]
        assert equal(begun[number], kernels(tmp_path, origin, expected[1]))
    if settings.get("rewind_step") == 10:
        prepare(tmp_path / "short", plan(train_iters=10, prune_iters=0)).run()
        assert equal(begun[1], kernels(tmp_path / "short", 0, "post_kernels"))


def test_without_pruning_there_is_one_round(tmp_path):
    prepare(tmp_path, plan(strategy="no_pruning")).run()
    assert is_done(round_directory(tmp_path, 0, 0)) and not round_directory(tmp_path, 0, 1).exists()


def test_steps_are_counted_as_they_are(tmp_path):
    rounds = prepare(tmp_path, plan(train_iters=170, eval_every=50, prune_iters=0))
    rounds.run()
    assert int(rounds.model.optimizer.iterations) == 170
    for name in ("train", "valid", "test"):
        assert [int(row["batch"]) for row in rows(tmp_path, 0, name)] == [0, 50, 100, 150, 170]


def test_the_step_is_traced_once_for_all_rounds(finished_rounds):
    assert finished_rounds.model.objective.traces == 1


@pytest.mark.full
def test_equal_seeds_give_equal_runs_and_others_do_not(finished, tmp_path):
    prepare(tmp_path / "same", plan(), (0, 1)).run()
    assert everything(tmp_path / "same", trials=(0, 1)) == everything(finished, trials=(0, 1))
    prepare(tmp_path / "other", plan(seed=5, prune_iters=0)).run()
    assert rows(tmp_path / "other", 0, "test") != rows(finished, 0, "test")


class Stopped(Exception):
    """Stands for a kill."""


def stop_at(rounds, number, step):
    """Makes the measurement of a round at a step fail."""
    measure = rounds.model.measure

    def failing(x, y, seeds, at=0, *args):
        done = sum(is_done(rounds.place(0, each)) for each in range(3))
        if (done, at) == (number, step):
            raise Stopped
        return measure(x, y, seeds, at, *args)

    rounds.model.measure = failing


@pytest.mark.parametrize(("number", "step"), [pytest.param(1, 0, marks=pytest.mark.full), (1, 40)])
def test_a_run_that_was_killed_and_goes_on_leaves_the_same_bits(number, step, finished, tmp_path):
    killed = prepare(tmp_path, plan(), (0, 1), checkpoint_seconds=0.0)
    stop_at(killed, number, step)
    with pytest.raises(Stopped):
        killed.run()
    said = []
    prepare(tmp_path, plan(), (0, 1), checkpoint_seconds=0.0, say=said.append).run()
    assert everything(tmp_path, trials=(0, 1)) == everything(finished, trials=(0, 1))
    assert any("goes on after step" in line for line in said) == (step > 20)
    assert not list(tmp_path.glob("*.weights.h5"))


def test_finished_rounds_are_left_alone_and_missing_ones_made_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (round_directory(tmp_path / "run", 1, 2) / "DONE").unlink()
    said = []
    prepare(tmp_path / "run", plan(), (0, 1), say=said.append).run()
    assert [line.partition(":")[0] for line in said] == ["round 2", "round 2, trial 1"]
    assert everything(tmp_path / "run", trials=(0, 1)) == everything(finished, trials=(0, 1))


@pytest.mark.full
def test_what_one_trial_has_finished_is_not_written_again_for_another(finished, tmp_path):
    shutil.copytree(round_directory(finished, 0, 0), round_directory(tmp_path, 0, 0))
    place = round_directory(tmp_path, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    prepare(tmp_path, plan(prune_iters=0), (0, 1), checkpoint_seconds=0.0).run()
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert everything(tmp_path, 1, (0, 1)) == everything(finished, 1, (0, 1))


@pytest.mark.full
def test_a_checkpoint_of_other_trials_is_not_gone_on_with(finished, tmp_path):
    killed = prepare(tmp_path, plan(), (0, 2, 1), checkpoint_seconds=0.0)
    stop_at(killed, 0, 40)
    with pytest.raises(Stopped):
        killed.run()
    assert (tmp_path / "trials_00-01.weights.h5").is_file()
    prepare(tmp_path, plan(prune_iters=0), (0, 1)).run()
    assert everything(tmp_path, 1, (0, 1)) == everything(finished, 1, (0, 1))


def test_a_directory_holds_rounds_of_one_plan(finished, tmp_path):
    other = prepare(finished, plan(train_iters=60), (0, 1))
    with pytest.raises(ValueError, match=r"train_iters=50, which .*prune_iter_00 .*Received: train_iters=60"):
        other.run()
    prepare(finished, plan(prune_iters=1), (0, 1)).run()  # which is the same plan, and done
    killed = prepare(tmp_path, plan(), checkpoint_seconds=0.0)
    stop_at(killed, 0, 40)
    with pytest.raises(Stopped):
        killed.run()
    with pytest.raises(ValueError, match=r"seed=1234, which .*h5 was made with"):
        prepare(tmp_path, plan(seed=5)).run()


def test_a_summary_is_json_where_nothing_was_attacked(tmp_path):
    attack = attacks.LinfFGSM(0.3, label="predicted")
    model = StackedRobustModel(dense(0), objectives.Natural(), attack)
    model.compile(FusedAdam(1.2e-3), steps_per_execution=10)
    held_out = {"valid": VALID, "test": TEST, "more": TEST}
    settings = plan(train_iters=10, eval_every=10, prune_iters=0)
    Rounds(
        model, dense, iterative_magnitude(FRACTIONS), TRAIN, held_out, settings, tmp_path, say=lambda line: None
    ).run()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (round_directory(tmp_path, 0, 0) / "summary.json").read_text()
    about = json.loads(text, parse_constant=refuse)
    assert about["final"]["train"]["adv_acc"] is None and about["final"]["train"]["acc"] > 0
    assert rows(tmp_path, 0, "train")[-1]["adv_acc"] == "nan"
    assert rows(tmp_path, 0, "more")[-1]["acc"] == rows(tmp_path, 0, "test")[-1]["acc"]


def test_convolutions_and_batch_norm_rewind_too(tmp_path):
    def build(seed):
        return tiny_network("masked", seed=seed)

    fractions = {"conv1": 0.2, "conv2": 0.2, "classifier": 0.1}
    prepare(tmp_path, plan(prune_iters=1), build=build, fractions=fractions).run()
    first, again, trained = (
        read_state(round_directory(tmp_path, 0, number), name)
        for number, name in ((0, "init"), (1, "init"), (0, "post"))
    )
    assert list(first.others) == list(trained.others) and any("bn1" in name for name in first.others)
    assert equal(first.others, again.others) and equal(first.kernels, again.kernels)
    assert not any(np.array_equal(first.others[name], trained.others[name]) for name in first.others if "bn1" in name)
    assert {name: mask.mean() < 0.95 for name, mask in kernels(tmp_path, 1, "masks").items()} == dict.fromkeys(
        fractions, True
    )


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    rounds = prepare(tmp_path, plan())
    rounds.model.optimizer.learning_rate.assign(1e30)
    with pytest.raises(FloatingPointError, match=r"trial 0 is (nan|inf) in round 0 before step 20"):
        rounds.run()


def test_a_rule_that_brings_entries_back_is_found_out(tmp_path):
    rounds = prepare(tmp_path, plan())
    calls = []

    def rule(kernels, masks):
        calls.append(1)
        return {name: np.full(mask.shape, len(calls) > 1) for name, mask in masks.items()}

    rounds._rule = rule
    with pytest.raises(RuntimeError, match="back in round 2"):
        rounds.run()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_iters": 0}, "`train_iters`"),
        ({"strategy": "rewind"}, "no_pruning, reinit_rand"),
        ({"rewind_step": 50}, "a step before the last of round 0, 50"),
        ({"rewind_step": 10, "strategy": "reinit_none"}, "`rewind_step` requires strategy=.reinit_orig"),
    ],
)
def test_bad_plans_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        plan(**settings)


def test_there_are_as_many_trials_as_members(tmp_path):
    rounds = prepare(tmp_path, plan(), (0, 1))
    with pytest.raises(ValueError, match="trains 2 networks at once"):
        Rounds(rounds.model, dense, rounds._rule, TRAIN, {}, plan(), tmp_path, (0,))


@pytest.mark.parametrize("names", [(), ("valid",), ("test",), ("valid", "test", "train")])
def test_sets_of_images_are_checked_before_training(names, tmp_path):
    model = prepare(tmp_path, plan()).model
    with pytest.raises(ValueError, match=r"`held_out` maps \"valid\", \"test\" and further names to images"):
        Rounds(model, dense, None, TRAIN, dict.fromkeys(names, TEST), plan(), tmp_path)


def test_a_model_is_compiled_and_does_no_more_steps_than_are_counted(tmp_path):
    attack = attacks.LinfFGSM(0.3)
    held_out = {"valid": VALID, "test": TEST}

    def begin(**compiled):
        model = StackedRobustModel(dense(0), objectives.Natural(), attack)
        if compiled:
            model.compile(FusedAdam(), **compiled)
        settings = plan(train_iters=20, prune_iters=0)
        return Rounds(
            model, dense, iterative_magnitude(FRACTIONS), TRAIN, held_out, settings, tmp_path, say=lambda line: None
        )

    with pytest.raises(ValueError, match="`model` must be compiled"):
        begin()
    for steps in (40, 15):
        with pytest.raises(ValueError, match=rf"steps_per_execution=20, .*Received: steps_per_execution={steps}"):
            begin(steps_per_execution=steps)
    rounds = begin(steps_per_execution=10)
    rounds.run()
    assert int(rounds.model.optimizer.iterations) == 20
