"""What is written when accuracy falls and recovers, and when it does not."""

import csv

import numpy as np
import pytest

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import layers, objectives
from tf_robust_sparse.training import RobustModel
from tf_robust_sparse.training.mask_changes import MaskChanges, save_masks


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def model():
    network = tiny_network("masked")
    network.get_layer("conv2").kernel_mask.assign(np.ones((3, 3, 8, 16), bool))
    found = RobustModel(network, objectives.Natural())
    found.compile("sgd")
    return found


def run(model, directory, values, threshold=0.05):
    """Epochs of these accuracies: in the second an entry goes, in the third it returns and another goes."""
    watch = MaskChanges(directory, threshold)
    watch.set_model(model)
    layer = model.network.get_layer("conv2")
    for epoch, value in enumerate(values):
        mask = np.ones((3, 3, 8, 16), bool)
        if epoch == 1:
            mask[1, 2, 3, 4] = False
        elif epoch == 2:
            mask[0, 0, 0, 0] = False
        layer.kernel_mask.assign(mask)
        model.network.get_layer("bn1").moving_mean.assign(np.full(8, epoch, "float32"))
        watch.on_epoch_end(epoch, {"val_robust_accuracy": value})


def test_the_last_epoch_is_written_down_without_a_dip_too(model, tmp_path):
    model.fit(*tiny_images(8), epochs=4, verbose=0, callbacks=[MaskChanges(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["epochs_2_4"]


def test_a_dip_is_written_down(model, tmp_path):
    run(model, tmp_path / "changes", [0.5, 0.4, 0.5])
    folder = tmp_path / "changes/epochs_1_3"
    per_layer = {row["layer"]: row for row in rows(folder / "layers.csv")}
    assert set(per_layer) == {"conv1", "conv2", "classifier", "all"}
    found = per_layer["conv2"]
    assert (found["entries"], found["changed_in_2"], found["changed_in_3"], found["changed"]) == ("1152", "1", "2", "2")
    assert float(found["share"]) == 2 / 1152 and per_layer["conv1"]["changed"] == "0"
    assert per_layer["all"]["changed"] == "2"
    entries = rows(folder / "entries.csv")
    assert [tuple(row.values()) for row in entries] == [
        ("conv2", "0", "0", "0", "0", "1", "1", "0"),
        ("conv2", "1", "2", "3", "4", "1", "0", "1"),
    ]
    means = [row for row in rows(folder / "batch_norm.csv") if row["statistic"] == "mean"]
    assert len(means) == 8 and [float(means[0][f"epoch_{epoch}"]) for epoch in (1, 2, 3)] == [0, 1, 2]


@pytest.mark.parametrize("values", [[0.5, 0.46, 0.5], [0.5, 0.4, 0.42], [0.4, 0.5, 0.4], [0.5, 0.4]])
def test_what_is_no_dip_is_not(values, model, tmp_path):
    run(model, tmp_path / "changes", values)
    assert not (tmp_path / "changes").exists()


def test_masks_are_written(model, tmp_path):
    save_masks(model.network, tmp_path / "masks/epoch_3.npz")
    found = np.load(tmp_path / "masks/epoch_3.npz")
    for layer in layers.kernel_layers(model.network):
        np.testing.assert_array_equal(found[layer.name], np.asarray(layer.effective_kernel) != 0)


def test_bad_threshold(tmp_path):
    with pytest.raises(ValueError, match="`threshold` is a share"):
        MaskChanges(tmp_path, 5)
