"""A data set: two labeled splits of images, in memory or in files."""

import dataclasses
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.data.image_files import ImageFiles

Images = np.ndarray | ImageFiles
MOST_CLASSES = 100_000  # a larger label is damaged or not a class number


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Train and test images of one classification problem, checked once when it is made.

    Args:
        name: Name in messages and reports.
        train_images: `(n, height, width, channels)`, uint8, or floats in [0, 1] (kept as float32); or `ImageFiles`.
        train_labels: `(n,)`, integers in `[0, num_classes)`; kept as int64.
        test_images: Like `train_images`, with the same height, width and channels.
        test_labels: Like `train_labels`.
        num_classes: Number of classes, 2 to 100,000.
        class_names: One name per class, or `None`.
        flip: Whether a mirrored image still shows its class: `True` for objects, `False` for digits.
        origin: Where the files were found.

    Raises:
        ValueError: if a split is empty, has the wrong rank or type, holds floats outside [0, 1], infinities or NaN,
            or labels that are not class numbers, or if the splits do not match.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] | None = None
    flip: bool = False
    origin: str = ""

    def __post_init__(self):
        called = f"{self.name} ({self.origin})" if self.origin else self.name
        if not 2 <= self.num_classes <= MOST_CLASSES:
            raise ValueError(
                f"{called}: `num_classes` must be 2 to {MOST_CLASSES}; number the classes 0, 1, 2, ... "
                f"Received: num_classes={self.num_classes}"
            )
        for split in ("train", "test"):
            images, labels = check_examples(
                getattr(self, f"{split}_images"),
                getattr(self, f"{split}_labels"),
                num_classes=self.num_classes,
                where=f"{called}, {split} split",
            )
            object.__setattr__(self, f"{split}_images", images)
            object.__setattr__(self, f"{split}_labels", labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{called}, test split: expected images of the train split's (height, width, channels), "
                f"{self.train_images.shape[1:]}; resize them first. Received: {self.test_images.shape[1:]}"
            )
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{called}: expected one entry of `class_names` for each of the {self.num_classes} classes; "
                f"pass them all or None. Received: {len(self.class_names)} names"
            )

    def take(
        self, train_examples: int | None = None, test_examples: int | None = None, seed: int = 0
    ) -> "ImageDataset":
        """Returns a smaller data set: a random part of train and the beginning of test.

        Args:
            train_examples: Size of the train subset, drawn without replacement; `None` keeps all in order.
            test_examples: Number of leading test examples; `None` keeps all.
            seed: Seed of the draw; the same seed gives the same subset.

        Raises:
            ValueError: if a count is not positive or exceeds the number of examples.
        """
        images, labels = self.train_images, self.train_labels
        if train_examples is not None:
            _check_count("train_examples", train_examples, len(labels), self.name)
            chosen = np.random.default_rng(seed).permutation(len(labels))[:train_examples]
            images, labels = images[chosen], labels[chosen]
        if test_examples is not None:
            _check_count("test_examples", test_examples, len(self.test_labels), self.name)
        return dataclasses.replace(
            self,
            train_images=images,
            train_labels=labels,
            test_images=self.test_images[:test_examples],
            test_labels=self.test_labels[:test_examples],
        )

    def split_validation(self, num_examples: int, seed: int = 0) -> tuple["ImageDataset", Images, np.ndarray]:
        """Holds out a random part of the train split.

        Args:
            num_examples: Size of the held-out part, less than the train split.
            seed: Seed of the draw; the same seed gives the same part.

        Returns:
            The data set without the held-out examples (the others keep their order), the held-out images and
            their labels.

        Raises:
            ValueError: if `num_examples` is not positive or leaves no training example.
        """
        _check_count("num_examples", num_examples, len(self.train_labels) - 1, self.name)
        order = np.random.default_rng(seed).permutation(len(self.train_labels))
        held_out, kept = order[:num_examples], np.sort(order[num_examples:])
        rest = dataclasses.replace(self, train_images=self.train_images[kept], train_labels=self.train_labels[kept])
        return rest, self.train_images[held_out], self.train_labels[held_out]


@overload
def check_examples(
    images: ImageFiles, labels: npt.ArrayLike, *, num_classes: int | None = None, where: str
) -> tuple[ImageFiles, np.ndarray]: ...


@overload
def check_examples(
    images: npt.ArrayLike, labels: npt.ArrayLike, *, num_classes: int | None = None, where: str
) -> tuple[np.ndarray, np.ndarray]: ...


def check_examples(
    images: npt.ArrayLike | ImageFiles, labels: npt.ArrayLike, *, num_classes: int | None = None, where: str
) -> tuple[Images, np.ndarray]:
    """Returns images as uint8 or float32 and labels as int64, or raises an error of one line that names the fault.

    Args:
        images: `(n, height, width, channels)`, uint8, or floats in [0, 1]; or `ImageFiles`, which stay unchanged.
        labels: `(n,)`, integers.
        num_classes: Number of classes; `None` only requires labels in [0, 100,000).
        where: Beginning of the messages, such as `"cifar10, train split"`.

    Raises:
        ValueError: if images or labels have other shapes, types or ranges.
    """
    most = MOST_CLASSES if num_classes is None else num_classes
    if isinstance(images, ImageFiles):
        if 0 in images.shape:
            raise ValueError(f"{where}: expected at least one image. Received: shape {images.shape}")
        return images, checked_labels(labels, len(images), most, where)
    pixels = checked_images(images, (None, None, None), where, bytes_too=True)
    if pixels.shape[1] in (1, 3) and min(pixels.shape[2:]) > 4:
        raise ValueError(
            f"{where}: images must be (n, height, width, channels), channels last; transpose channels-first images "
            f"with x.transpose(0, 2, 3, 1). Received: shape {pixels.shape}"
        )
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32, copy=False)
    return pixels, checked_labels(labels, len(pixels), most, where)


def label_array(values: Any) -> np.ndarray:
    """Returns a list or array of integers as an array, without rounding or converting other values.

    Raises:
        ValueError: if it holds anything else.
    """
    if isinstance(values, (list, tuple)) and all(
        type(value) is int or isinstance(value, np.integer) for value in values
    ):
        try:
            return np.array(values, np.int64)
        except OverflowError as error:
            raise ValueError(str(error)) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise ValueError(f"{kind}, not of integers alone")
    return values


def _check_count(argument: str, count: int, available: int, name: str) -> None:
    if not 1 <= count <= available:
        raise ValueError(
            f"{name}: `{argument}` must be in 1..{available}, the number of examples. Received: {argument}={count}"
        )
