"""Verified accuracy: never above PGD, by tables that go on, with the settings checked."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, certify, objectives
from tf_robust_sparse.training import RobustModel


@pytest.fixture(scope="module")
def trained():
    """A network that knows its images; not to be changed."""
    network, (x, y) = tiny_network("subnet", batch_norm=True), tiny_images(96)
    model = RobustModel(network, objectives.AT(attacks.LinfPGD(0.02, 0.01, 3)))
    model.compile("adam")
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(32), epochs=30, verbose=0)
    return network, x[:20], y[:20]


@pytest.mark.parametrize(
    "method",
    [
        "ibp",
        "crown-ibp",
        pytest.param("crown", marks=pytest.mark.full),
        pytest.param("alpha-crown", marks=pytest.mark.full),
        pytest.param("zonotope", marks=pytest.mark.full),
    ],
)
def test_no_image_is_verified_that_an_attack_breaks(method, trained):
    network, x, y = trained
    rows = certify.verify_images(network, x, y, 0.01, method, batch_size=7)
    assert [row.image for row in rows] == list(range(20))
    attack = attacks.LinfPGD(0.01, num_steps=50, seed=0)
    x_adv = attack(network, tf.constant(x), tf.constant(y))
    stands = network(x_adv, training=False).numpy().argmax(1) == y
    verified = np.array([row.verified for row in rows])
    clean = network(x, training=False).numpy().argmax(1)
    assert (verified <= stands).all()
    assert [row.prediction for row in rows] == clean.tolist()
    if method != "ibp":
        assert verified.sum() > 0


def test_a_table_goes_on_where_it_was_stopped(trained, tmp_path):
    network, x, y = trained
    path = tmp_path / "verified.tsv"
    seen = []
    whole = certify.verify_images(network, x, y, 0.01, path=path, batch_size=8, progress=seen.append)
    assert len(seen) == 20
    some = certify.verify_images(network, x, y, 0.01, path=path, skip=3, max_examples=4)
    assert [row.image for row in some] == [0, 3, 6, 9] and len(path.read_text().splitlines()) == 22
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:12]) + "11\t3")
    again = certify.verify_images(network, x, y, 0.01, path=path, batch_size=5, progress=seen.append)
    assert len(seen) == 30
    assert [row[:4] for row in again] == [row[:4] for row in whole]
    np.testing.assert_allclose([row.margin for row in again], [row.margin for row in whole], atol=1e-5)
    with pytest.raises(ValueError, match="of other settings"):
        certify.verify_images(network, x, y, 0.02, path=path)
    with pytest.raises(ValueError, match="belongs to other data"):
        certify.verify_images(network, x, (y + 1) % 10, 0.01, path=path)
    path.write_text(path.read_text().replace("\n3\t", "\nthree\t"))
    with pytest.raises(ValueError, match="is damaged"):
        certify.verify_images(network, x, y, 0.01, path=path)


@pytest.mark.parametrize("epsilon", [0, -1, 1, float("nan")])
def test_radii_that_mean_nothing(epsilon, trained):
    network, x, y = trained
    with pytest.raises(ValueError, match="`epsilon` is a radius"):
        certify.verify_images(network, x, y, epsilon)


def test_what_cannot_be_bounded_begins_no_table(trained, tmp_path):
    network, x, y = trained
    path = tmp_path / "verified.tsv"
    with pytest.raises(ValueError, match="`method` must be one of"):
        certify.verify_images(network, x, y, 0.01, "milp", path)
    with pytest.raises(ValueError, match=r"Labels must be integers in \[0, 10\)"):
        certify.verify_images(network, x, y + 9, 0.01, path=path)
    odd = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "tanh")])
    with pytest.raises(ValueError, match="activation tanh"):
        certify.verify_images(odd, x, y, 0.01, path=path)
    assert not path.exists()
