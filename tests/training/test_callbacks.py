"""Callbacks: records, checkpoints, resuming, selection."""

import csv
import json
import shutil

import keras
import numpy as np
import pytest

from tests.networks import tiny_dataset, tiny_images, tiny_network
from tf_robust_sparse import data, objectives, saving
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.saving.checkpoint import read_metadata
from tf_robust_sparse.sparsity import ConnectivitySampling, MagnitudePruning, schedules
from tf_robust_sparse.training import Checkpoints, ConnectivityLogger, RobustModel, StopOnNaN, sgdw
from tf_robust_sparse.training.callbacks import ReferenceSelection, clean_accuracy, correct_counter

ATTACK = LinfPGD(epsilon=0.1, step_size=0.05, num_steps=2)
EPOCHS, STEPS, CONFIG = 4, 3, {"model": "tiny", "seed": 0}


def compiled(objective=None, validation_attack=ATTACK):
    network = tiny_network(connectivity=0.05)
    objective = objectives.AT(ATTACK) if objective is None else objective
    model = RobustModel(network, objective, ConnectivitySampling(0.1), validation_attack=validation_attack)
    model.compile(sgdw(0.2, 5e-4, total_steps=EPOCHS * STEPS), metrics=["accuracy"], run_eagerly=True)
    return model


def callbacks_of(model, directory, writes=True, **arguments):
    connections = ConnectivityLogger(model.network, model.sparsifier)
    settings = {"best": {"best_robust": "val_robust_accuracy"}, "config": CONFIG, **arguments}
    checkpoints = Checkpoints(
        directory, connections=connections, sparsifier=model.sparsifier, writes=writes, **settings
    )
    return [StopOnNaN(), connections, checkpoints]


def train(model, callbacks, epochs=EPOCHS, first_epoch=0):
    model.fit(
        data.train_dataset(*tiny_images(50), batch_size=16, epochs=epochs, first_epoch=first_epoch),
        validation_data=data.test_dataset(*tiny_images(12, seed=1), batch_size=8),
        epochs=epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=STEPS,
        verbose=0,
        callbacks=callbacks,
    )
    return model


def state(model):
    return [np.array(v) for v in [*model.network.variables, *model.optimizer.variables]]


def without_times(state):
    return {name: value for name, value in state.items() if "seconds" not in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is not interrupted: its directory, model and callbacks. `stopped` is it after an epoch."""
    directory = tmp_path_factory.mktemp("whole")
    keras.utils.set_random_seed(0)
    model = compiled(objectives.Natural())
    callbacks = callbacks_of(model, directory)
    stopped = directory.with_name("stopped")
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: epoch or shutil.copytree(directory, stopped))
    return directory, train(model, [*callbacks, stop]), callbacks


def test_a_resumed_run_equals_the_uninterrupted_one(whole, tmp_path):
    directory, expected, expected_callbacks = whole
    shutil.copytree(directory.with_name("stopped"), tmp_path, dirs_exist_ok=True)  # and gone on with in fresh objects
    keras.utils.set_random_seed(10)
    model = compiled(objectives.Natural())
    callbacks = callbacks_of(model, tmp_path)
    assert callbacks[-1].restore(model) == 1
    train(model, callbacks, EPOCHS, 1)
    for a, b in zip(state(expected), state(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(callbacks[-1].state) == without_times(expected_callbacks[-1].state)
    for name in ("history.csv", "history.json", "connections.jsonl"):
        assert (tmp_path / name).read_text() == (directory / name).read_text()


def test_records_hold_one_line_per_epoch(whole):
    tmp_path, model, callbacks = whole
    history = json.loads((tmp_path / "history.json").read_text())
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "val_robust_accuracy"}
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert all(set(line) == names | {"epoch", "connectivity", "nonzero", "births", "deaths"} for line in history)
    assert all(isinstance(value, float) for line in history for name, value in line.items() if name != "epoch")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history
    lines = [json.loads(line) for line in (tmp_path / "connections.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for line, summed in zip(lines, history, strict=True):
        assert line["nonzero"] == summed["nonzero"] == model.sparsifier.budget == 266
        assert [layer["name"] for layer in line["layers"]] == ["conv1", "conv2", "classifier"]
        assert sum(layer["nonzero"] for layer in line["layers"]) == 266
        assert sum(line["births"].values()) == summed["births"]
        assert sum(line["deaths"].values()) == summed["deaths"]
    initial = int(0.05 * 72) + int(0.05 * 1_152) + int(0.05 * 1_440)
    assert initial + sum(line["births"] - line["deaths"] for line in history) == 266
    assert callbacks[-1].state["seconds"] > callbacks[-1].state["training_seconds"] > 0


def test_connections_without_a_sparsifier_are_counted_too():
    model = RobustModel(tiny_network("plain"), objectives.Natural())
    model.compile("sgd")
    history = model.fit(tiny_dataset(16), verbose=0, callbacks=[ConnectivityLogger(model.network, None)]).history
    assert history["connectivity"] == [1.0] and history["nonzero"] == [2_664]
    assert "births" not in history


class FakeEpochs:
    """Calls a Checkpoints callback as fit does, with chosen numbers."""

    def __init__(self, directory, **arguments):
        self.model = compiled()
        settings = {"best": {"best": "val_accuracy"}, "config": CONFIG, **arguments}
        self.checkpoints = Checkpoints(directory, **settings)
        self.checkpoints.set_model(self.model)

    def epoch(self, number, value):
        self.checkpoints.on_epoch_begin(number)
        self.checkpoints.on_epoch_end(number, {"val_accuracy": value, "loss": 1.0})


def test_best_is_the_first_highest_value(tmp_path):
    run = FakeEpochs(tmp_path)
    for number, value in enumerate([0.2, 0.5, 0.5, 0.4]):
        run.epoch(number, value)
    best = read_metadata(tmp_path / "best.weights.h5")
    assert best["state"]["epoch"] == 2
    assert best["state"]["best"]["best"] == {"epoch": 2, "monitor": "val_accuracy", "value": 0.5}
    last = read_metadata(tmp_path / "last.weights.h5")
    assert last["state"]["epoch"] == 4 and last["state"]["best"] == best["state"]["best"]
    assert last["config"] == CONFIG


def test_best_is_written_before_last(tmp_path, monkeypatch):
    """A kill between the two leaves `last` at the epoch before, which is then repeated, and no best state is lost."""
    run = FakeEpochs(tmp_path)
    run.epoch(0, 0.2)
    written = []
    original = saving.save_checkpoint

    def killed_after_the_first(path, *arguments):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, *arguments)

    monkeypatch.setattr(saving, "save_checkpoint", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run.epoch(1, 0.3)
    monkeypatch.undo()
    assert written == ["best.weights.h5"]
    (tmp_path / "history.csv").unlink()  # as of a kill between the state and its history
    again = FakeEpochs(tmp_path)
    assert again.checkpoints.restore(again.model) == 1 and (tmp_path / "history.csv").is_file()
    again.epoch(1, 0.3)
    assert read_metadata(tmp_path / "last.weights.h5")["state"]["best"]["best"]["epoch"] == 2
    assert [line["epoch"] for line in json.loads((tmp_path / "history.json").read_text())] == [1, 2]


def test_a_missing_quantity_selects_nothing(tmp_path):
    run = FakeEpochs(tmp_path, best={"best": "val_robust_accuracy"})
    run.epoch(0, 0.2)
    assert not (tmp_path / "best.weights.h5").exists() and (tmp_path / "last.weights.h5").exists()


def test_a_run_of_another_configuration_is_not_resumed(tmp_path):
    FakeEpochs(tmp_path).epoch(0, 0.2)
    other = FakeEpochs(tmp_path, config={**CONFIG, "seed": 7})
    with pytest.raises(ValueError, match=r"begun with seed=0, which --resume cannot change.*Received: seed=7"):
        other.checkpoints.restore(other.model)
    assert other.checkpoints.state["epoch"] == 0


def test_only_one_of_several_workers_writes(tmp_path):
    run = FakeEpochs(tmp_path / "run", writes=False)
    run.epoch(0, 0.2)
    assert not (tmp_path / "run").exists()
    assert run.checkpoints.state["epoch"] == 1


def test_counts_are_checked_before_a_checkpoint_is_written(tmp_path):
    model = compiled()
    checkpoints = Checkpoints(tmp_path, {}, CONFIG, sparsifier=model.sparsifier)
    checkpoints.set_model(model)
    model.network.get_layer("classifier").theta.assign(np.ones((144, 10)))
    checkpoints.on_epoch_begin(0)
    with pytest.raises(RuntimeError, match="more than the budget"):
        checkpoints.on_epoch_end(0, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_reference_selection_measures_after_the_first_update_of_each_epoch(tmp_path):
    model = compiled(objectives.Natural(), None)
    test = tiny_dataset(24, seed=3)
    checkpoints = Checkpoints(tmp_path, {}, CONFIG)
    selection = ReferenceSelection(checkpoints, test)
    count, measured = correct_counter(model.network), []

    class Expected(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                measured.append((clean_accuracy(count, test), state(model)))

    train(model, [Expected(), checkpoints, selection])
    values = [value for value, _ in measured]
    assert len(values) == EPOCHS
    epoch = int(np.argmax(values))
    assert checkpoints.state["best"]["reference"] == {
        "epoch": epoch + 1,
        "monitor": "test_accuracy",
        "value": values[epoch],
    }
    other = compiled(objectives.Natural(), None)
    saving.load_checkpoint(tmp_path / "reference.weights.h5", other)
    for a, b in zip(measured[epoch][1], state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_clean_accuracy_is_that_of_evaluate():
    model = RobustModel(tiny_network("plain"), objectives.Natural())
    model.compile(sgdw(0.2, 5e-4), metrics=["accuracy"])
    model.fit(tiny_dataset(), epochs=5, verbose=0)
    report = model.evaluate(tiny_dataset(21), verbose=0, return_dict=True)
    assert clean_accuracy(correct_counter(model.network), tiny_dataset(21)) == pytest.approx(report["accuracy"])


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_checkpoint_is_overwritten(loss, tmp_path):
    run = FakeEpochs(tmp_path)
    run.epoch(0, 0.2)
    before = (tmp_path / "last.weights.h5").read_bytes()
    stop = StopOnNaN()
    stop.on_epoch_begin(1)
    stop.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) in epoch 2, batch 4\. Try .*--resume"):
        stop.on_train_batch_end(3, {"loss": loss})
    assert (tmp_path / "last.weights.h5").read_bytes() == before


def test_no_epoch_before_the_budget_is_reached_becomes_the_best(tmp_path):
    network = tiny_network("masked")
    schedule = schedules.polynomial(0.1, end_step=2 * STEPS, frequency=1)
    model = RobustModel(network, objectives.Natural(), MagnitudePruning(0.1, schedule))
    model.compile(sgdw(0.1, 5e-4))
    checkpoints = Checkpoints(tmp_path, {"best": "falling"}, CONFIG, sparsifier=model.sparsifier)
    falling = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(falling=-epoch))
    train(model, [falling, checkpoints])
    assert checkpoints.state["best"]["best"]["epoch"] == 3  # pruning ends with the first step of the third epoch
    saving.load_checkpoint(tmp_path / "best.weights.h5", model)
    assert model.sparsifier.within_budget()
