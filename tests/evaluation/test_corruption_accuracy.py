import json

import numpy as np
import pytest
import tensorflow as tf

from tests.evaluation.conftest import CLASSES, SHAPE
from tf_robust_sparse.data import corruptions
from tf_robust_sparse.evaluation.corruption_accuracy import evaluate_corruptions


def accuracy(network, x, y):
    return float((np.argmax(network(x, training=False), axis=1) == y).mean())


def bright(x):
    """Two logits: class 1 for images brighter than 0.5 on average."""
    brightness = tf.reduce_mean(x, axis=[1, 2, 3])
    return tf.stack([0 * brightness, brightness - 0.5], axis=1)


def ladder(n=10, shape=SHAPE):
    """Gray images from 0 to just below 1, all of class 0 or 1 as `bright` says."""
    levels = (np.arange(n, dtype=np.float32) + 0.5) / n
    return np.broadcast_to(levels[:, None, None, None], (n, *shape)).copy(), (levels > 0.5).astype(int)


def write_files(folder, names, images, labels):
    """Writes files in the layout of CIFAR-10-C: the same images at each severity, unless there are five sets."""
    folder.mkdir(exist_ok=True)
    stacked = np.concatenate(images) if isinstance(images, list) else np.concatenate([images] * 5)
    for name in names:
        np.save(folder / f"{name}.npy", np.rint(stacked * 255).astype(np.uint8))
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))


def test_accuracy_of_a_brightness_threshold():
    """Brightness moves a known number of gray images across the threshold; contrast none of them."""
    x, y = ladder()
    result = evaluate_corruptions(bright, (x, y), names=["brightness", "contrast"], batch_size=4, progress=False)
    # The levels below 0.5 are 0.05, 0.15, ... 0.45; increases at severities 2, 4 and 5 are 0.1, 0.2, 0.3.
    at_severity = result["corruptions"]["brightness"]["accuracy_at_severity"]
    assert list(at_severity) == ["1", "2", "3", "4", "5"]
    assert [at_severity[severity] for severity in "245"] == [0.9, 0.8, 0.7]
    assert result["corruptions"]["contrast"]["accuracy"] == 1
    assert result["clean_accuracy"] == 1


def test_result_is_plain_and_its_means_are_means(network, examples):
    result = evaluate_corruptions(network, examples, max_examples=70, severities=[1, 5], progress=False)
    assert json.loads(json.dumps(result)) == result
    assert list(result["corruptions"]) == list(corruptions.COMPUTED_CORRUPTIONS)
    for entry in result["corruptions"].values():
        assert entry["source"] == "computed" and list(entry["accuracy_at_severity"]) == ["1", "5"]
        assert entry["accuracy"] == pytest.approx(np.mean(list(entry["accuracy_at_severity"].values())))
    means = [entry["accuracy"] for entry in result["corruptions"].values()]
    assert result["mean_corruption_accuracy"] == pytest.approx(np.mean(means))
    assert result["images"] == 70 and result["severities"] == [1, 5]
    assert result["seconds"] > 0 and result["images_per_second"] > 0
    assert 1 / CLASSES < result["mean_corruption_accuracy"] < result["clean_accuracy"]


def test_counts_are_those_of_a_plain_loop(network, examples):
    x, y = (part[:101] for part in examples)
    names = ["gaussian_noise", "pixelate"]
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    for batch_size in (None, 40):
        result = evaluate_corruptions(network, data, names=names, batch_size=batch_size, seed=7, progress=False)
        assert result["clean_accuracy"] == pytest.approx(accuracy(network, x, y))
        for name in names:
            for severity in corruptions.SEVERITIES:
                expected = accuracy(network, corruptions.corrupt(x, name, severity, seed=7), y)
                got = result["corruptions"][name]["accuracy_at_severity"][str(severity)]
                assert got == pytest.approx(expected, abs=1.01 / 101)  # folded batch norm rounds differently


def test_seed_reaches_the_noise(examples):
    """A model that answers by one bit of one pixel sees any other noise."""

    def model(x):
        bit = tf.math.floormod(tf.floor(x[:, 0, 0, 0] * 1024), 2)
        return tf.stack([bit, 1 - bit], axis=1)

    data = (examples[0][:200], np.zeros(200, int))
    results = [
        evaluate_corruptions(model, data, names=["gaussian_noise"], severities=[5], seed=seed, progress=False)
        for seed in (1, 1, 2)
    ]
    first, again, other = (result["mean_corruption_accuracy"] for result in results)
    assert first == again != other


def test_files(tmp_path):
    x, y = ladder()
    # At severity s, s of the ten images are turned dark or bright.
    sets = [np.where(np.arange(10)[:, None, None, None] < severity, 1 - x, x) for severity in range(1, 6)]
    write_files(tmp_path, corruptions.CORRUPTIONS, sets, y)
    result = evaluate_corruptions(bright, directory=tmp_path, progress=False)
    assert list(result["corruptions"]) == list(corruptions.CORRUPTIONS)
    for entry in result["corruptions"].values():
        assert entry["source"] == "files"
        assert entry["accuracy_at_severity"] == {"1": 0.9, "2": 0.8, "3": 0.7, "4": 0.6, "5": 0.5}
        assert entry["accuracy"] == pytest.approx(0.7)
    assert result["mean_corruption_accuracy"] == pytest.approx(0.7)
    assert result["clean_accuracy"] is None and result["images"] == 10
    some = evaluate_corruptions(bright, directory=tmp_path, severities=[2], max_examples=4, progress=False)
    assert some["images"] == 4 and some["corruptions"]["fog"]["accuracy_at_severity"] == {"2": 0.5}


def test_files_come_first_and_the_rest_is_computed(tmp_path):
    x, y = ladder()
    write_files(tmp_path, ["fog", "contrast"], 1 - x, y)  # all wrong
    names = ["pixelate", "fog", "contrast", "brightness"]
    result = evaluate_corruptions(bright, (x, y), tmp_path, names, severities=[1], progress=False)
    assert list(result["corruptions"]) == names
    sources = {name: entry["source"] for name, entry in result["corruptions"].items()}
    assert sources == {"pixelate": "computed", "fog": "files", "contrast": "files", "brightness": "computed"}
    means = [entry["accuracy"] for entry in result["corruptions"].values()]
    assert means[:3] == [1, 0, 0] and result["clean_accuracy"] == 1
    with pytest.raises(FileNotFoundError, match=r"labels\.npy and frost\.npy of CIFAR-10-C"):
        evaluate_corruptions(bright, (x, y), tmp_path, progress=False)
    with pytest.raises(FileNotFoundError, match=r"expected labels\.npy and pixelate\.npy, brightness\.npy"):
        evaluate_corruptions(bright, None, tmp_path, names, progress=False)


def test_one_trace_and_one_batch_size(network, examples):
    traces, runs = [], []

    def model(images):
        traces.append(tuple(images.shape))
        tf.numpy_function(lambda: runs.append(1), [], [])
        return network(images, training=False)

    x, y = (part[:50] for part in examples)
    names = ["contrast", "brightness"]
    evaluate_corruptions(model, (x, y), names=names, severities=[1, 2, 3], batch_size=32, progress=False)
    assert traces == [(32, *SHAPE)]
    assert len(runs) == 2 * (1 + 6)  # clean, and two corruptions at three severities


def test_probabilities_will_do(network, examples, recwarn):
    """No attack, no gradient: probabilities name the same class."""
    arguments = {"names": ["contrast"], "max_examples": 50, "progress": False}
    logits = evaluate_corruptions(lambda x: network(x), examples, **arguments)
    probabilities = evaluate_corruptions(lambda x: tf.nn.softmax(network(x)), examples, **arguments)
    assert probabilities["corruptions"] == logits["corruptions"] and not recwarn.list


def test_progress_goes_to_standard_error(capsys):
    evaluate_corruptions(bright, ladder(), names=["contrast", "pixelate"], severities=[1, 2])
    shown = capsys.readouterr()
    assert shown.out == "" and "40/40" in shown.err and "corruptions" in shown.err
    evaluate_corruptions(bright, ladder(), names=["contrast"], progress=False)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "pass `dataset`, or `directory` with the files of CIFAR-10-C. Received: dataset=None"),
        ({"dataset": ladder(), "names": ["frost"]}, "frost cannot be computed, .*frost.npy"),
        ({"dataset": ladder(), "names": ["rain"]}, r"Received: names=\['rain'\]"),
        ({"dataset": ladder(), "severities": [0]}, r"severities must be integers from 1 to 5.*Received: \[0\]"),
        ({"dataset": ladder(), "max_examples": 0}, "`max_examples` is at least 1"),
        ({"dataset": ladder(), "batch_size": -1}, "`batch_size` is at least 1"),
        ({"dataset": (2 * ladder()[0], ladder()[1])}, r"Images must be floats in \[0, 1\]"),
        ({"dataset": (ladder()[0], ladder()[1] + 1)}, r"integers in \[0, 2\).*Received: labels from 1 to 2"),
    ],
)
def test_malformed_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluate_corruptions(bright, progress=False, **arguments)
    assert "\n" not in str(error.value)


def test_max_examples_of_files(tmp_path):
    write_files(tmp_path, ["fog"], *ladder())
    with pytest.raises(ValueError, match="`max_examples` is at least 1"):
        evaluate_corruptions(bright, directory=tmp_path, names=["fog"], max_examples=0, progress=False)


def test_models_of_other_images_and_bad_logits(network, examples, tmp_path):
    with pytest.raises(ValueError, match="takes images of 8x8x1, but the data has 9x9x1"):
        evaluate_corruptions(network, ladder(shape=(9, 9, 1)), names=["contrast"], progress=False)
    write_files(tmp_path, ["fog"], *ladder(shape=(9, 9, 1)))
    with pytest.raises(ValueError, match="takes images of 8x8x1, but the data has 9x9x1"):
        evaluate_corruptions(network, directory=tmp_path, names=["fog"], progress=False)
    write_files(tmp_path, ["fog"], *ladder(6))
    with pytest.raises(ValueError, match="Received: 6 images of 8x8x1, and 10 of 8x8x1"):
        evaluate_corruptions(bright, ladder(), tmp_path, ["fog"], progress=False)

    write_files(tmp_path, ["contrast"], *ladder())
    write_files(tmp_path, ["fog"], *ladder(shape=(9, 9, 1)))
    with pytest.raises(ValueError, match="Received: 10 images of 8x8x1, and 10 of 9x9x1"):
        evaluate_corruptions(bright, directory=tmp_path, names=["contrast", "fog"], progress=False)

    def breaks(x):
        return tf.where(x[:, 0, 0] > 0.96, np.nan, bright(x))

    with pytest.raises(ValueError, match="NaN or infinite logits on images with brightness of severity 1"):
        evaluate_corruptions(breaks, ladder(), names=["brightness"], progress=False)
    with pytest.raises(ValueError, match="one logit per class, at least two"):
        evaluate_corruptions(lambda x: bright(x)[:, :1], ladder(), names=["contrast"], progress=False)
