import json

import numpy as np
import pytest
import tensorflow as tf

from tests.evaluation.conftest import CLASSES, EPSILON, SHAPE, patterns
from tf_robust_sparse.attacks import L2PGD, LinfFGSM, LinfPGD
from tf_robust_sparse.evaluation import evaluate_robustness, load_saved_model, robust_accuracy


def accuracy(network, x, y):
    return float((np.argmax(network(x, training=False), axis=1) == y).mean())


def dataset(x, y, size):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def test_sandwich_and_monotone_restarts(network, examples):
    result = evaluate_robustness(
        network,
        dataset(*examples, 250),
        {"one": LinfPGD(EPSILON, num_steps=10), "five": LinfPGD(EPSILON, num_steps=10, restarts=5)},
        progress=False,
    )
    one, five = (result["attacks"][name]["robust_accuracy"] for name in ("one", "five"))
    assert 1 / CLASSES / 4 < five <= one < result["clean_accuracy"] < 1
    history = result["attacks"]["five"]["robust_accuracy_after_restart"]
    assert len(history) == 5 and (np.diff(history) <= 0).all() and history[-1] == five
    assert history[0] == one
    assert result["robust_accuracy"] <= five
    assert result["clean_accuracy"] == pytest.approx(accuracy(network, *examples))
    assert result["clean_errors"] == round(1000 * (1 - result["clean_accuracy"]))
    assert result["images"] == 1000 and result["flags"] == []
    assert result["images_per_second"] > 0


def test_result_is_plain_and_names_the_attacks(network, examples):
    x, y = (part[:20] for part in examples)
    attacks = [LinfPGD(0.1, num_steps=2, restarts=2), L2PGD(0.5, num_steps=2), LinfFGSM(0.1), LinfFGSM(0.2)]
    result = evaluate_robustness(network, (x, y), attacks, progress=False)
    assert json.loads(json.dumps(result)) == result
    assert list(result["attacks"]) == ["LinfPGD-2x2", "L2PGD-2x1", "LinfFGSM-1x1", "LinfFGSM-1x1-4"]
    entry = result["attacks"]["LinfPGD-2x2"]
    assert entry["attack"] == "LinfPGD" and entry["epsilon"] == 0.1 and entry["restarts"] == 2
    assert result["robust_accuracy"] <= min(entry["robust_accuracy"] for entry in result["attacks"].values())


def test_counts_are_those_of_a_plain_loop(network, examples):
    """One image at a time, every restart on every image, the same seeds."""
    from tf_robust_sparse.layers.noise import fold_in

    x, y = (part[:60] for part in examples)
    attack = LinfPGD(EPSILON, num_steps=3, restarts=3, seed=7)
    single = LinfPGD(EPSILON, attack.step_size, 3)
    stands = np.argmax(network(x, training=False), axis=1) == y
    for restart in range(3):
        seeds = fold_in(fold_in(7, restart), tf.range(60))
        x_adv = single(network, x, y, seed=seeds)
        stands &= np.argmax(network(x_adv, training=False), axis=1) == y
    assert robust_accuracy(network, (x, y), attack) == pytest.approx(stands.mean(), abs=1 / 60)
    assert 0 < stands.mean() < 1


def test_batch_size_does_not_matter(network, examples):
    x, y = (part[:101] for part in examples)
    attack = LinfPGD(EPSILON, num_steps=5, restarts=3)
    results = [robust_accuracy(network, dataset(x, y, size), attack) for size in (16, 101)]
    results.append(robust_accuracy(network, (x, y), attack))
    results.append(robust_accuracy(network, (x, y), attack, batch_size=40))
    # The sign of a gradient of rounding size may flip an image.
    assert np.ptp(results) <= 1 / 101


def test_determinism(network, examples):
    attack = LinfPGD(EPSILON, num_steps=2, restarts=2)
    first, second = (robust_accuracy(network, examples, attack, max_examples=200) for _ in range(2))
    assert first == second


def test_robust_accuracy_without_attack_is_clean_accuracy(network, examples):
    assert robust_accuracy(network, examples) == pytest.approx(accuracy(network, *examples))
    assert robust_accuracy(network, examples, LinfPGD(0.0, num_steps=1)) == pytest.approx(accuracy(network, *examples))


def test_restarts_argument(network, examples):
    attack = LinfPGD(EPSILON, num_steps=2)
    one, five = (robust_accuracy(network, examples, attack, restarts, 300) for restarts in (1, 5))
    assert five == robust_accuracy(network, examples, LinfPGD(EPSILON, num_steps=2, restarts=5), max_examples=300)
    assert five < one
    with pytest.raises(ValueError, match="random_start=True"):
        robust_accuracy(network, examples, LinfFGSM(EPSILON), restarts=5)


def test_broken_images_are_not_attacked_again_and_nothing_is_retraced(network, examples):
    x, y = (part[:100] for part in examples)
    traces, runs = [], []

    def model(images):
        traces.append(images.shape)
        tf.numpy_function(lambda: runs.append(1), [], [])
        return network(images, training=False)

    def forwards(attack):
        traces.clear(), runs.clear()
        result = evaluate_robustness(model, (x, y), attack, batch_size=32, progress=False)
        return len(traces), len(runs), result

    few_traces, _, _ = forwards(LinfPGD(EPSILON, num_steps=2))
    many_traces, count, result = forwards(LinfPGD(EPSILON, num_steps=2, restarts=6))
    assert few_traces == many_traces == 4  # clean, zero gradients, the body of the loop, the final answer
    assert set(map(tuple, traces)) == {(32, *SHAPE)}
    standing = [result["clean_accuracy"], *result["attacks"]["LinfPGD-2x6"]["robust_accuracy_after_restart"][:-1]]
    batches = sum(int(np.ceil(round(share * 100) / 32)) for share in standing)
    # Random? Of one batch? Other pixels? Gradients of zero?
    looks = 2 + 3 + 4 + int(np.ceil(round(standing[0] * 100) / 32))
    assert count == 4 + looks + 3 * batches  # clean batches; two steps and one answer in each attacked batch


def test_a_model_that_is_never_right_is_not_attacked(examples):
    x, y = (part[:10] for part in examples)
    wrong = (y + 1) % CLASSES
    lookup = tf.constant(3 * np.eye(CLASSES, dtype="float32")[wrong])
    result = evaluate_robustness(lambda x: lookup + 0 * x[:, 0, 0], (x, y), LinfPGD(0.1), batch_size=10, progress=False)
    assert result["clean_accuracy"] == result["robust_accuracy"] == 0 and result["clean_errors"] == 10


def test_clean_errors_count_even_if_an_attack_would_correct_them():
    """A brightness threshold, and an attack step so long that it leaves a misclassified image on the right side."""
    x = np.full((4, 2, 2, 1), 0.5, "float32")

    def model(x):
        brightness = tf.reduce_mean(x, axis=[1, 2, 3])
        return tf.stack([brightness - 0.5, 100 * (0.5 - brightness) * (brightness - 0.45) + 0.001], axis=1)

    assert robust_accuracy(model, (x, np.zeros(4, int)), LinfPGD(0.3, 0.3, 1, random_start=False)) == 0


def test_function_and_saved_model(network, examples, tmp_path):
    network.export(str(tmp_path / "serve"), verbose=False)
    attack = LinfPGD(EPSILON, num_steps=5, restarts=2)
    models = [network, lambda x: network(x, training=False), load_saved_model(tmp_path / "serve")]
    results = [robust_accuracy(model, examples, attack, max_examples=300) for model in models]
    assert np.ptp(results) <= 1 / 300


def test_progress_goes_to_standard_error(network, examples, capsys):
    attack = LinfPGD(EPSILON, num_steps=1, restarts=2)
    evaluate_robustness(network, examples, attack, max_examples=50)
    shown = capsys.readouterr()
    assert shown.out == "" and "LinfPGD-1x2" in shown.err and "% robust" in shown.err
    evaluate_robustness(network, examples, attack, max_examples=50, progress=False)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_max_examples_takes_the_first_and_stops_reading(network):
    x, y = patterns(40, 3)
    endless = dataset(x, y, 16).repeat()
    assert evaluate_robustness(network, endless, [], max_examples=20, progress=False)["images"] == 20
    assert robust_accuracy(network, endless, max_examples=20) == pytest.approx(accuracy(network, x[:20], y[:20]))
    with pytest.raises(ValueError, match="endless; pass max_examples"):
        robust_accuracy(network, endless)


def test_labels_of_shape_batch_by_one(network, examples):
    x, y = examples
    assert robust_accuracy(network, (x, y[:, None])) == robust_accuracy(network, (x, y))


def test_probabilities_are_flagged(network, examples):
    with pytest.warns(UserWarning, match="look like probabilities"):
        result = evaluate_robustness(lambda x: tf.nn.softmax(network(x)), examples, [], max_examples=50, progress=False)
    assert "look like probabilities" in result["flags"][0]


def bad(change):
    x, y = patterns(20, 4)
    return change(x, y)


@pytest.mark.parametrize(
    "data, message",
    [
        (lambda x, y: (x[:0], y[:0]), "empty"),
        (lambda x, y: dataset(x, y, 5).take(0), "empty"),
        (lambda x, y: ((x * 255).astype("uint8"), y), r"tf.cast\(x, tf.float32\) / 255"),
        (lambda x, y: (x * 255, y), r"floats in \[0, 1\]; divide by 255. Received: pixels from 0 to 255"),
        (lambda x, y: (x * np.nan, y), "NaN"),
        (lambda x, y: (x, y + 1), r"Labels must be integers in \[0, 5\), because the network has 5 logits"),
        (lambda x, y: (x, y - 1), "Received: labels from -1 to 3"),
        (lambda x, y: (x, np.eye(5)[y]), "argmax"),
        (lambda x, y: (x, y.astype("float32")), "one for each image"),
        (lambda x, y: (x, y[:3]), "20 images, 3 labels"),
        (lambda x, y: (x, y, y), "Received: elements of 3 parts"),
        (lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)), "dataset.batch"),
        (lambda x, y: (np.zeros((4, 28, 28, 1), "float32"), y[:4]), "takes images of 8x8x1, but the data has 28x28x1"),
    ],
)
def test_malformed_data_is_refused(network, data, message):
    with pytest.raises(ValueError, match=message):
        robust_accuracy(network, bad(data), LinfPGD(0.1))


def test_malformed_models_and_attacks_are_refused(network, examples):
    with pytest.raises(ValueError, match=r"NaN or infinite logits on the clean images \(1000 of 1000"):
        robust_accuracy(lambda x: network(x) * np.nan, examples)
    with pytest.raises(ValueError, match="at least two"):
        robust_accuracy(lambda x: network(x)[:, :1], examples)
    overflow = tf.constant(1e38)
    with pytest.raises(ValueError, match="NaN or infinite logits on images attacked by LinfPGD"):
        x = np.full((4, 1), 0.5, "float32")
        exploding = lambda x: tf.concat([tf.where(x == 0.5, 2.0, x * overflow * 1e3), 0 * x], axis=1)  # noqa: E731
        robust_accuracy(exploding, (x, np.zeros(4, int)), LinfPGD(0.1, num_steps=1))
    for attack in (LinfPGD(0.1, targeted=True), "pgd"):
        with pytest.raises(ValueError, match="untargeted attack objects"):
            evaluate_robustness(network, examples, [attack])
    with pytest.raises(TypeError, match="any callable"):
        robust_accuracy("path", examples)
    with pytest.raises(ValueError, match="`max_examples` is at least 1"):
        robust_accuracy(network, examples, max_examples=0)
    with pytest.raises(ValueError, match="`batch_size` is at least 1"):
        robust_accuracy(network, examples, batch_size=-1)
