import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.layers.noise import as_seed, fold_in, normal_like, uniform_like

DRAWS = {
    "uniform": lambda x, seed: uniform_like(x, seed, -0.5, 0.5),
    "normal": lambda x, seed: normal_like(x, seed, 2.0),
}


@pytest.fixture(params=list(DRAWS))
def draw(request):
    return DRAWS[request.param]


def test_equal_seeds_give_equal_noise_and_others_do_not(draw):
    x = tf.zeros((3, 4, 4, 1))
    np.testing.assert_array_equal(draw(x, [1, 2]), draw(x, [1, 2]))
    assert np.abs(draw(x, [1, 2]) - draw(x, [1, 3])).max() > 0.01
    assert draw(x, [1, 2]).shape == x.shape


def test_moments():
    x = tf.zeros((100, 1000))
    uniform, normal = uniform_like(x, [0, 0], -0.5, 0.5), normal_like(x, [0, 0], 2.0)
    assert -0.5 <= np.min(uniform) < -0.499 and 0.499 < np.max(uniform) <= 0.5
    assert abs(np.mean(normal)) < 0.03 and abs(np.std(normal) - 2) < 0.03


@pytest.mark.parametrize("compiled", [False, True])
def test_replicas_together_draw_the_noise_of_one_device(draw, compiled):
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = tf.distribute.MirroredStrategy(cpus, cross_device_ops=tf.distribute.ReductionToOneDevice())
    assert strategy.num_replicas_in_sync == 2
    x = tf.zeros((6, 4, 4, 1))
    seed = tf.constant([5, 6], tf.int64)

    def on_replicas():
        return strategy.run(lambda: draw(x[:3], seed))

    parts = strategy.experimental_local_results(
        (tf.function(on_replicas, autograph=False) if compiled else on_replicas)()
    )
    np.testing.assert_array_equal(np.concatenate(parts), draw(x, seed))


def test_outside_a_replica_the_noise_is_that_of_one_device(draw):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        noise = draw(tf.zeros((6, 4)), [5, 6])
    np.testing.assert_array_equal(noise, draw(tf.zeros((6, 4)), [5, 6]))


def test_one_seed_per_example_makes_noise_independent_of_the_batch(draw):
    x = tf.zeros((4, 3, 3, 1))
    seeds = fold_in([7, 0], tf.range(4))
    assert seeds.shape == (4, 2)
    noise = draw(x, seeds)
    np.testing.assert_array_equal(draw(x[1:3], seeds[1:3]), noise[1:3])
    assert len(np.unique(noise)) > 30


def test_fold_in():
    seed = as_seed(3)
    assert seed.shape == (2,)
    folded = np.array([fold_in(seed, n) for n in range(20)])
    assert len(np.unique(folded, axis=0)) == 20
    np.testing.assert_array_equal(fold_in(seed, 4), folded[4])
    np.testing.assert_array_equal(fold_in(seed, tf.range(20)), folded)
    both = fold_in(folded, 9)
    np.testing.assert_array_equal(both[3], fold_in(folded[3], 9))


def test_noise_of_an_unknown_batch_size_keeps_the_other_dimensions(draw):
    @tf.function(input_signature=[tf.TensorSpec((None, 4, 4, 1))], autograph=False)
    def noise(x):
        drawn = draw(x, [0, 1])
        assert drawn.shape.as_list() == [None, 4, 4, 1]
        return drawn

    assert noise(tf.zeros((3, 4, 4, 1))).shape == (3, 4, 4, 1)


@pytest.mark.parametrize("seed", [[1, 2, 3], [0.5, 0.5], "seed"])
def test_malformed_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        uniform_like(tf.zeros((2, 2)), seed, 0.0, 1.0)
