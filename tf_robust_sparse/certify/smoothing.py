"""Randomized smoothing: l2 certificates of any network, true with high probability.

The smoothed classifier returns the class that the network gives most often when Gaussian noise is added to the image.
If the probability of this class is at least p > 1/2, no perturbation shorter than `sigma * Phi^-1(p)` changes the
answer.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify.gaussian_noise import noisy_copies
from tf_robust_sparse.data.checks import checked_images
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference

ABSTAIN = -1
MOST_ANSWERS = 10**9  # counted in 32 bits; at 1e9 the certified radius is 5.7 sigma at most, so more gain little
# Each purpose has noise of its own: an estimate must not reuse the noise that selected the class.
_SELECTION, _ESTIMATION, _PREDICTION, _MONITOR = range(4)


class Certificate(NamedTuple):
    """The certificate of one image: `prediction` is a class or `ABSTAIN`, `radius` an l2 distance in pixels."""

    prediction: int
    radius: float


def lower_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """Returns the one-sided Clopper-Pearson lower bound of a probability, too high with probability at most `alpha`."""
    from scipy import stats

    return float(stats.beta.ppf(alpha, successes, trials - successes + 1)) if successes else 0.0


def certified_radius(successes: int, trials: int, alpha: float, sigma: float) -> float | None:
    """Returns the radius that a number of equal answers certifies, or `None` if they certify nothing.

    Args:
        successes: How often the network gave the class, under noise that did not select it.
        trials: How often it was asked.
        alpha: Probability that the radius is too large, in (0, 1).
        sigma: Standard deviation of the noise, in pixels of [0, 1].
    """
    from scipy import stats

    probability = lower_confidence_bound(successes, trials, alpha)
    return float(sigma * stats.norm.ppf(probability)) if probability >= 0.5 else None


def prediction_p_value(first: int, second: int) -> float:
    """Returns the p-value of the two-sided test that the two most frequent classes are equally probable."""
    from scipy import stats

    return float(stats.binomtest(first, first + second, 0.5).pvalue)


class SmoothedClassifier:
    """The classifier that returns the most frequent answer of a network under Gaussian noise.

    ```python
    smoothed = trs.certify.SmoothedClassifier(network, sigma=0.25)
    prediction, radius = smoothed.certify(image, n0=100, n=10_000, alpha=0.001)
    ```

    Args:
        model: A Keras network or any callable from images to logits `(batch, classes)`.
        sigma: Standard deviation of the noise, in pixels of [0, 1]; images with noise are not clipped.
        batch_size: Noisy images in one forward pass.
        seed: Integer. The noise depends only on it, on the number of the image and on the purpose.

    Raises:
        ValueError: if `sigma` is not positive, or `batch_size` not a positive integer.

    Reference: [Cohen et al., 2019](https://arxiv.org/abs/1902.02918), section 3.
    """

    def __init__(self, model: Any, sigma: float, batch_size: int = 128, seed: int = 0) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(
                f"`sigma` is the standard deviation of the noise, above 0, such as 0.25. Received: sigma={sigma}"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
        self.model = model
        self.sigma = float(sigma)
        self.batch_size = int(batch_size)
        self.seed = int(seed)
        self._forward = inference_forward(model)
        self._counted: dict[tuple[int, ...], Callable[..., tf.Tensor]] = {}

    def votes(self, x: np.ndarray, count: int, image: int = 0, stream: int = _ESTIMATION) -> np.ndarray:
        """Returns how often the network gives each class for `x` under noise: `(classes,)`.

        Args:
            x: `(height, width, channels)`, in [0, 1].
            count: Number of noisy copies, 1 to 1e9.
            image: Number of the image, which selects the noise.
            stream: The purpose, which selects the noise too.

        Raises:
            ValueError: if `count` is out of range, or the network returns NaN or no classes.
        """
        if not 1 <= count <= MOST_ANSWERS:
            raise ValueError(f"`count` is how often the network is asked, 1 to {MOST_ANSWERS}. Received: count={count}")
        x = _one_image(x)
        key = np.array([self.seed, image * 4 + stream]).astype(np.uint32)  # modulo 2**32
        found = self._function(x.shape)(x, tf.constant(count), tf.constant(key))
        votes = found.numpy()
        if votes.sum() != count:
            raise ValueError("The network returns logits that are not finite under noise, so it cannot be certified")
        return votes

    def certify(
        self, x: np.ndarray, n0: int = 100, n: int = 10_000, alpha: float = 0.001, image: int = 0
    ) -> Certificate:
        """Certifies one image.

        Args:
            x: `(height, width, channels)`, in [0, 1].
            n0: Number of answers that select the class.
            n: Number of new answers that estimate its probability.
            alpha: Probability that the certificate is wrong, in (0, 1).
            image: Number of the image, which selects the noise.

        Raises:
            ValueError: if `n0` or `n` is not in [1, 1e9], `n` is below `n0`, `alpha` is outside (0, 1), or even `n`
                equal answers would certify nothing.
        """
        check_settings(n0, n, alpha)
        x = _one_image(x)
        selected = int(np.argmax(self.votes(x, n0, image, _SELECTION)))
        successes = int(self.votes(x, n, image, _ESTIMATION)[selected])
        radius = certified_radius(successes, n, alpha, self.sigma)
        return Certificate(ABSTAIN, 0.0) if radius is None else Certificate(selected, radius)

    def predict(self, x: np.ndarray, n: int = 1000, alpha: float = 0.001, image: int = 0) -> int:
        """Returns the class of one image, or `ABSTAIN` if `n` answers do not decide it with confidence `1 - alpha`.

        Raises:
            ValueError: if `n` or `alpha` is out of range, or even `n` equal answers would not be enough.
        """
        check_settings(1, n, alpha)
        _check_decides(n, 1 + math.log2(1 / alpha), alpha)
        votes = self.votes(x, n, image, _PREDICTION)
        second, first = np.argsort(votes, kind="stable")[-2:]
        decided = prediction_p_value(int(votes[first]), int(votes[second])) <= alpha
        return int(first) if decided else ABSTAIN

    def monitor(self, x: np.ndarray, passes: int = 10, image: int = 0) -> tuple[int, float]:
        """Returns a class and a radius from the mean probabilities of a few passes: an estimate, not a certificate."""
        seed = tf.constant([self.seed, image * 4 + _MONITOR], tf.int64)
        images = tf.constant(_one_image(x)[np.newaxis])
        classes, radii = SmoothingMonitor(self.sigma, passes).estimate(self.model, images, seed)
        return int(classes[0]), float(radii[0])

    def _function(self, shape: tuple[int, ...]) -> Callable[..., tf.Tensor]:
        if shape not in self._counted:
            self._counted[shape] = self._compiled(shape)
        return self._counted[shape]

    def _compiled(self, shape: tuple[int, ...]) -> Callable[..., tf.Tensor]:
        """Returns the compiled loop over batches of noise, traced once per shape of image."""
        signature = [tf.TensorSpec(shape), tf.TensorSpec((), tf.int32), tf.TensorSpec((2,), tf.uint32)]
        size = self.batch_size
        classes = self._forward(tf.zeros((1, *shape))).shape[-1]

        @tf.function(input_signature=signature, autograph=False)
        def count_votes(x: tf.Tensor, count: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
            with cached_for_inference(self.model):

                def ask(batch: tf.Tensor, votes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                    logits = self._forward(noisy_copies(x, size, key, batch, self.sigma))
                    # Surplus copies of the last batch do not count. Answers that are not finite do not count either,
                    # and `votes` reports them by the missing counts.
                    asked = (tf.range(size) < count - batch * size) & tf.reduce_all(tf.math.is_finite(logits), axis=1)
                    answers = tf.one_hot(tf.argmax(logits, axis=1), classes, dtype=tf.int64)
                    return batch + 1, votes + tf.reduce_sum(answers * tf.cast(asked, tf.int64)[:, None], axis=0)

                _, votes = tf.while_loop(
                    lambda batch, _: batch * size < count,
                    ask,
                    (tf.constant(0), tf.zeros(classes, tf.int64)),
                    parallel_iterations=1,
                )
            return votes

        return count_votes


class SmoothingMonitor:
    """A validation check: which images get their class by mean probabilities under noise. It certifies nothing.

    Args:
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        passes: Noisy copies of each image.
        radius: Count an image only if `sigma * Phi^-1(p)` of its largest mean probability is at least this.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, sigma: float, passes: int = 10, radius: float = 0.0) -> None:
        if not 0 < sigma < math.inf or passes < 1 or not radius >= 0:
            raise ValueError(
                "`sigma` is above 0, `passes` at least 1 and `radius` at least 0. "
                f"Received: sigma={sigma}, passes={passes}, radius={radius}"
            )
        self.sigma, self.passes, self.radius = float(sigma), int(passes), float(radius)

    def __call__(self, network: Any, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns whether each of the images `x` is classified as `y`: `(batch,)`, boolean.

        Args:
            network, x, seed: See `estimate`.
            y: `(batch,)`, integer labels.
        """
        classes, radii = self.estimate(network, x, seed)
        return (classes == tf.cast(y, tf.int64)) & (radii >= self.radius)

    def estimate(self, network: Any, x: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns class and radius of each image from mean probabilities, `(batch,)` each; they certify nothing.

        Args:
            network: A Keras network or any callable from images to logits.
            x: `(batch, height, width, channels)`, in [0, 1].
            seed: Integers of shape `(2,)`.
        """
        forward = inference_forward(network)
        seed = tf.cast(seed, tf.int64)
        keys = [tf.random.experimental.stateless_fold_in(seed, number) for number in range(self.passes)]
        noisy = [x + tf.random.stateless_normal(tf.shape(x), key, stddev=self.sigma) for key in keys]
        mean = tf.add_n([tf.nn.softmax(tf.cast(forward(each), tf.float32)) for each in noisy]) / self.passes
        largest = tf.clip_by_value(tf.reduce_max(mean, axis=1), 0.5, 1 - 1e-7)
        return tf.argmax(mean, axis=1), self.sigma * tf.math.ndtri(largest)


def _one_image(x: Any) -> np.ndarray:
    return checked_images(np.asarray(x)[np.newaxis])[0].astype(np.float32)


def check_settings(n0: int, n: int, alpha: float) -> None:
    """Raises a `ValueError` unless `1 <= n0 <= n <= 1e9`, `0 < alpha < 1` and `n` answers can certify anything."""
    if not 1 <= n0 <= n <= MOST_ANSWERS:
        raise ValueError(
            f"`n` answers estimate what `n0` answers select, 1 <= n0 <= n <= {MOST_ANSWERS}; pass n0=100, n=10000. "
            f"Received: n0={n0}, n={n}"
        )
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` is the probability of a wrong certificate, in (0, 1). Received: alpha={alpha}")
    _check_decides(n, math.log2(1 / alpha), alpha)


def _check_decides(n: int, least: float, alpha: float) -> None:
    """Raises a `ValueError` if `n` answers decide nothing even when all are equal."""
    if n < least:
        raise ValueError(
            f"With alpha={alpha}, `n` must be at least {math.ceil(least)}: fewer answers can only abstain, even if all "
            f"are equal. Received: n={n}"
        )


def high_probability_accuracy(accuracy: float, images: int, alpha: float, rho: float = 0.001) -> float:
    """Returns the certified accuracy that holds with probability `1 - rho` over all certificates together.

    Args:
        accuracy: Certified accuracy as counted, in [0, 1].
        images: Number of images it was counted on.
        alpha: Probability that one certificate is wrong.
        rho: Probability that the result is too high.

    Reference: [Cohen et al., 2019](https://arxiv.org/abs/1902.02918), appendix on high-probability guarantees.
    """
    spread = math.log(1 / rho) / images
    return accuracy - alpha - math.sqrt(alpha * (1 - alpha) * spread) - spread / 3
