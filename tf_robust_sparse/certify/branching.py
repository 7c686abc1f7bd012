"""Complete verification: the ball is cut by the signs of ReLUs until every part is decided (branch and bound)."""

import heapq
import itertools
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify import table
from tf_robust_sparse.certify.bounds import specification
from tf_robust_sparse.certify.splits import Bounded, Parts, Root, SplitBounds
from tf_robust_sparse.certify.verification import Verifier
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.paths import user_path

STATUSES = ("verified", "falsified", "unknown")
_COLUMNS = ("idx", "label", "predict", "status", "margin", "nodes", "time")
_ROOT_ITERATIONS = 50  # of the uncut ball


class DecidedImage(NamedTuple):
    """One line of the table.

    Attributes:
        image: Index of the image.
        label, prediction: Its class, and the one that the network gives it.
        status: `"verified"`, `"falsified"` (there is a counterexample) or `"unknown"` (a limit was reached).
        margin: Proven lower bound of the smallest margin in the ball.
        nodes: Parts of the ball that were bounded after the ball itself.
        seconds: Time that it took.
        counterexample: Image of the ball that the network gives another class, if `"falsified"`; `None` otherwise, and
            for images whose line was in the table before.
    """

    image: int
    label: int
    prediction: int
    status: str
    margin: float
    nodes: int
    seconds: float
    counterexample: np.ndarray | None = None

    @property
    def verified(self) -> bool:
        """Whether no image of the ball is given another class."""
        return self.status == "verified"


def branch_and_bound(
    network: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epsilon: float,
    path: str | os.PathLike | None = None,
    *,
    max_nodes: int = 10_000,
    seconds: float = 60.0,
    iterations: int = 5,
    chunk: int = 4096,
    batch_size: int = 64,
    skip: int = 1,
    max_examples: int | None = None,
    progress: Callable[[DecidedImage], None] = lambda _: None,
) -> list[DecidedImage]:
    """Decides for every `skip`-th image whether an image of its l-infinity ball is given another class.

    Each image is bounded by alpha-CROWN and attacked. Whatever stays open is cut in two by the sign of a ReLU's input,
    again and again, the part with the lowest bound first. With enough nodes and time every image is decided, except
    where the smallest margin is 0 up to rounding.

    ```python
    rows = trs.certify.branch_and_bound(network, x, y, epsilon=2 / 255, seconds=30)
    verified = sum(row.status == "verified" for row in rows)
    ```

    Args:
        network: See `margins`; without max-pooling.
        x: `(images, height, width, channels)`, float32, in [0, 1].
        y: `(images,)`, integer labels.
        epsilon: Radius in pixels of [0, 1], above 0 and below 1.
        path: Tab-separated table, written line by line. Images in an existing table of the same settings are not
            decided again.
        max_nodes: Largest number of parts of an image that are bounded; 0 bounds and attacks the uncut ball only.
        seconds: Longest time for an image. It is checked between batches of subproblems.
        iterations: Gradient steps on the slopes and multipliers of each subproblem.
        chunk: See `margins`.
        batch_size: Number of subproblems at once, at least 2.
        skip: Distance between the images, at least 1.
        max_examples: Largest number of images.
        progress: Called with each line.

    Raises:
        ValueError: if settings, pixels or labels are out of range, a layer has no rule, or the table is damaged
            or belongs to another network or other settings.

    Reference: [Wang et al., 2021](https://arxiv.org/abs/2103.06624); choice of the neurons in the
        manner of [Bunel et al., 2020](https://arxiv.org/abs/1909.06588).
    """
    Verifier(epsilon)  # checks the radius
    for name, value, least in (
        *(("max_nodes", max_nodes, 0), ("iterations", iterations, 0), ("batch_size", batch_size, 2)),
        *(("skip", skip, 1), ("max_examples", max_examples, 1)),
    ):
        if value is not None and value < least:
            raise ValueError(f"`{name}` is at least {least}. Received: {name}={value}")
    if not seconds > 0:
        raise ValueError(f"`seconds` is above 0. Received: seconds={seconds}")
    bounds = SplitBounds(network, chunk)
    x = checked_images(x, tuple(network.input_shape[1:]))
    y = checked_labels(y, len(x), bounds.classes, why=f", because the network has {bounds.classes} logits")
    settings = {
        **{"method": "branch-and-bound", "epsilon": float(epsilon), "max_nodes": max_nodes, "seconds": seconds},
        **{"iterations": iterations, "images": len(x), "of": table.fingerprint(network, x)},
        "rounding": "subtracted",
    }
    done = table.begin(user_path(path), settings, _COLUMNS, _parse) if path is not None else {}
    for image, row in done.items():
        if image >= len(y) or row.label != int(y[image]):
            raise ValueError(
                f"{path} has label {row.label} for image {image}: it belongs to other data; pass another file"
            )
    wanted = range(0, len(x), skip)[:max_examples]
    for image in wanted:
        if image not in done:
            search = Search(bounds, np.asarray(x[image], np.float32), int(y[image]), float(epsilon))
            done[image] = search.run(max_nodes, seconds, iterations, batch_size)._replace(image=image)
            if path is not None:
                table.append(user_path(path), _values(done[image]))
            progress(done[image])
    return [done[image] for image in wanted]


class Search:
    """The open parts of one image."""

    def __init__(self, bounds: SplitBounds, image: np.ndarray, label: int, epsilon: float) -> None:
        self._begin = time.perf_counter()
        self._bounds, self._image, self._label, self._epsilon = bounds, image, label, epsilon
        self._open: list[tuple[float, int, Parts, int]] = []  # a heap: bound, number, part, neuron to cut at
        self._count = itertools.count()
        self._closed = math.inf  # lowest bound of all parts that are not cut any more
        self._nodes = self._rounds = 0
        self._found: np.ndarray | None = None

    def run(self, max_nodes: int, seconds: float, iterations: int, batch_size: int) -> DecidedImage:
        """Decides the image."""
        prediction = int(np.argmax(self._bounds.logits(self._image[np.newaxis])))
        if prediction != self._label:
            self._found = self._image
            return self._row(prediction, -math.inf)
        root = self._bounds.root(self._image, self._epsilon)
        scale = self._start(root)
        while self._open and self._found is None and time.perf_counter() - self._begin < seconds:
            pairs = min(batch_size, max_nodes - self._nodes) // 2
            if not pairs:
                break
            taken = [heapq.heappop(self._open) for _ in range(min(pairs, len(self._open)))]
            full = [each for each in taken if (each[2].signs != 0).all()]
            for bound, _, part, _ in full:
                self._leaf(root, part, bound)
            taken = [each for each in taken if not (each[2].signs != 0).all()]
            if taken and self._found is None:
                self._cut(root, taken, scale, iterations)
        return self._row(prediction, min([self._closed, *(each[0] for each in self._open[:1])]))

    def _row(self, prediction: int, margin: float) -> DecidedImage:
        status = "falsified" if self._found is not None else "unknown" if self._open or margin <= 0 else "verified"
        seconds = time.perf_counter() - self._begin
        return DecidedImage(0, self._label, prediction, status, margin, self._nodes, seconds, self._found)

    def _start(self, root: Root) -> np.ndarray:
        """Bounds the uncut ball for every class, attacks what is open, and returns the scale of multipliers."""
        rows = specification(tf.constant([self._label]), self._bounds.classes)[0].numpy()
        lower, upper = root.lower[root.undecided], root.upper[root.undecided]
        slopes = np.repeat((upper > -lower).astype(np.float32)[np.newaxis], len(rows), 0)
        zeros = np.zeros_like(slopes)
        parts = Parts(rows, zeros, slopes, zeros)
        found = self._bound(root, parts, np.ones(len(lower), np.float32), _ROOT_ITERATIONS)
        self._keep(parts, found, found.bounds)
        is_open = found.bounds <= 0
        if is_open.any():
            starts = np.concatenate([found.corners[is_open], np.repeat(self._image[np.newaxis], is_open.sum(), 0)])
            of_starts = np.concatenate([rows[is_open]] * 2)
            self._attack(root, starts, of_starts)
        return found.sizes.mean(0) + np.float32(1e-6)

    def _bound(self, root: Root, parts: Parts, scale: np.ndarray, iterations: int) -> Bounded:
        found = self._bounds.improve(root, parts, scale, iterations, 0.0)
        return Bounded(*(each.numpy() for each in found))

    def _cut(self, root: Root, taken: list[Any], scale: np.ndarray, iterations: int) -> None:
        """Cuts each part in two."""
        parts = Parts(*(np.stack(each) for each in zip(*(each[2] for each in taken), strict=True)))
        halves = Parts(*(np.repeat(each, 2, 0).astype(np.float32) for each in parts))
        places = np.repeat([each[3] for each in taken], 2)
        halves.signs[np.arange(len(places)), places] = np.tile([-1.0, 1.0], len(taken))
        found = self._bound(root, halves, scale, iterations)
        self._nodes += len(places)
        # Cutting never loosens, whatever the optimization of a half finds.
        self._keep(
            halves, found, np.maximum(found.bounds, np.repeat(np.array([each[0] for each in taken], np.float32), 2))
        )
        self._check(found.corners)
        self._rounds += 1
        if self._found is None and self._rounds & (self._rounds - 1) == 0:  # a power of 2, so attacks stay cheap
            self._attack(root, found.corners, halves.rows)

    def _attack(self, root: Root, starts: np.ndarray, rows: np.ndarray) -> None:
        self._check(self._bounds.descend(root.box, starts, rows, self._epsilon).numpy())

    def _keep(self, parts: Parts, found: Bounded, bounds: np.ndarray) -> None:
        """Closes the parts that are proven and puts the others on the heap."""
        for place, bound in enumerate(bounds):
            if bound > 0:
                self._closed = min(self._closed, float(bound))
                continue
            # Half the precision is enough, because any slope in [0, 1] and any multiplier of at least 0 is sound.
            kept = (found.alphas[place].astype(np.float16), np.minimum(found.betas[place], 6e4).astype(np.float16))
            part = Parts(parts.rows[place], parts.signs[place].astype(np.int8), *kept)
            heapq.heappush(self._open, (float(bound), next(self._count), part, int(found.chosen[place])))

    def _check(self, points: np.ndarray) -> None:
        """Looks for a counterexample among points of the ball."""
        wrong = np.flatnonzero(np.argmax(self._bounds.logits(points), 1) != self._label)
        if len(wrong):
            # Again and alone, because another batch size may round in another way.
            one = points[wrong[0]]
            if np.argmax(self._bounds.logits(one[np.newaxis])) != self._label:
                self._found = one

    def _leaf(self, root: Root, part: Parts, bound: float) -> None:
        """Decides a part whose neurons all have a sign: there the network is affine, so a linear program is exact."""
        multipliers, point = multipliers_of_pattern(self._bounds, root, part)
        if point is not None:
            self._check(point[np.newaxis])
        # The bound with these multipliers is the least margin; unlike the solver's number, it allows for rounding.
        one = Parts(*(np.asarray(each, np.float32)[np.newaxis] for each in part._replace(betas=multipliers)))
        least = self._bound(root, one, np.ones(len(multipliers), np.float32), 0).bounds[0]
        self._closed = min(self._closed, max(bound, float(least)))


def multipliers_of_pattern(bounds: SplitBounds, root: Root, part: Parts) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns multipliers that prove the smallest margin where all neurons have their signs, and its image.

    If no image has these signs, the multipliers prove a positive margin, and there is no image.
    """
    from scipy.optimize import linprog

    shape = root.box.lower.shape[1:]
    lower, upper = (np.asarray(side, np.float64).reshape(-1) for side in root.box)
    active = (root.lower >= 0).astype(np.float32)
    active[root.undecided] = part.signs > 0
    signs = part.signs.astype(np.float64)

    def affine(points: np.ndarray, with_bias: bool) -> tuple[np.ndarray, np.ndarray]:
        neurons, logits = bounds.affine(points.reshape(-1, *shape).astype(np.float32), active, with_bias)
        rows = logits.numpy().astype(np.float64) @ part.rows
        return signs * neurons.numpy().astype(np.float64)[:, root.undecided], rows

    neurons, margins = affine(np.eye(lower.size), False)
    neuron_biases, margin_bias = affine(np.zeros_like(lower), True)
    found = linprog(margins, A_ub=-neurons.T, b_ub=neuron_biases[0], bounds=np.stack([lower, upper], 1))
    if found.status == 2:  # no image has these signs, so find by how much the worst neuron misses its sign
        relaxed = np.column_stack([-neurons.T, -np.ones(neurons.shape[1])])
        box = [*zip(lower, upper, strict=True), (0, None)]
        found = linprog(np.eye(lower.size + 1)[-1], A_ub=relaxed, b_ub=neuron_biases[0], bounds=box)
        if found.status == 0 and found.fun > 0:
            least = np.minimum(margins * lower, margins * upper).sum() + margin_bias[0]  # whatever the signs
            return -found.ineqlin.marginals * 2 * max(1.0, -least) / found.fun, None
    if found.status != 0:
        return part.betas, None
    point = np.clip(found.x, lower, upper).astype(np.float32).reshape(shape)
    return -found.ineqlin.marginals, np.clip(point, root.box.lower[0], root.box.upper[0])


def _values(row: DecidedImage) -> tuple[Any, ...]:
    begin = (row.image, row.label, row.prediction, row.status)
    return (*begin, repr(row.margin), row.nodes, f"{row.seconds:.3f}")


def _parse(words: list[str]) -> DecidedImage | None:
    try:
        image, label, prediction, nodes = (int(words[place]) for place in (0, 1, 2, 5))
        margin, seconds = float(words[4]), float(words[6])
    except ValueError:
        return None
    status = words[3]
    sane = 0 <= seconds < math.inf and nodes >= 0 and status in STATUSES and not math.isnan(margin)
    sane = sane and (status != "verified" or (margin > 0 and prediction == label))
    return DecidedImage(image, label, prediction, status, margin, nodes, seconds) if sane else None
