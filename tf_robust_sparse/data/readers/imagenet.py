"""ImageNet and ImageNet-100 as folders of image files, which are not read into memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tf_robust_sparse.data import files
from tf_robust_sparse.data.image_files import ImageFiles
from tf_robust_sparse.data.readers import folder
from tf_robust_sparse.data.source import ImageDataset

PREPARED = "imagenet2012"  # by TensorFlow Datasets
LISTS = ("train_100.txt", "val_100.txt")
_SIZE = 224
_LONGEST_LABEL = 6  # digits


def find(place: Path) -> tuple[Path, Path] | None:
    """Returns the folders `train` and `val` (or `test`) of `place`, or `None` unless both exist."""
    return folder.find(place)


def read(place: Path, name: str, size: int | None = None) -> ImageDataset:
    """Lists the images of `train/<class>/*.JPEG` and `val/<class>/*.JPEG`; nothing is decoded.

    Args:
        place: Holds the two folders and, for `imagenet100`, the lists `train_100.txt` and `val_100.txt` with a line
            `train/<class>/<file> <label>` for each image; it needs no lists if it holds only the 100 classes.
        name: `"imagenet"`, where every folder is a class, or `"imagenet100"`.
        size: Height and width of the images, 224 by default.

    Raises:
        FileNotFoundError: if the folders or a listed file do not exist.
        ValueError: if there are no images, test has an unknown class, a list is malformed, or ImageNet-100 has more
            classes and no lists.
    """
    splits = find(place)
    if splits is None:
        raise FileNotFoundError(
            f"{place}: expected train/<class>/ and val/<class>/ with images. Received: no such folders"
        )
    lists = [place / file for file in LISTS]
    if name == "imagenet100" and all(path.is_file() for path in lists):
        listed = [_read_list(path, place) for path in lists]
        names = _names_of_labels(listed, lists)
    else:
        train, test = (folder.list_images(split) for split in splits)
        folder.check_classes(train, test)
        names = tuple(train.images)
        if name == "imagenet100" and len(names) > 100:
            raise ValueError(
                f"{place}: expected {' and '.join(LISTS)}, which list the 100 classes, or only their folders. "
                f"Received: {len(names)} classes and no lists"
            )
        listed = [_labeled(split, names) for split in (train, test)]
    size = _SIZE if size is None else size
    return ImageDataset(
        name=name,
        train_images=ImageFiles(listed[0][0], size),
        train_labels=listed[0][1],
        test_images=ImageFiles(listed[1][0], size),
        test_labels=listed[1][1],
        num_classes=len(names),
        class_names=names,
        flip=True,
        origin=str(place),
    )


def unpack(prepared: Path, place: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> None:
    """Writes the files of ImageNet as TensorFlow Datasets prepared it to class folders for `read`.

    Encoded images are copied unchanged. Existing files stay, so an interrupted call can be repeated.

    Args:
        prepared: A prepared version, such as `~/tensorflow_datasets/imagenet2012/5.1.0`.
        place: Folder in which `train/<class>/` and `val/<class>/` are created.
        progress: Called for each image with the split, the number of images so far, and the number of all.

    Raises:
        ValueError: if `prepared` is no such version, or it is damaged.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder_from_directory(str(prepared))
        names = builder.info.features["label"].names
        encoded = {"image": tensorflow_datasets.decode.SkipDecoding()}
        for split, folder_name in (("train", "train"), ("validation", "val")):
            total = builder.info.splits[split].num_examples
            examples = builder.as_dataset(split=split, decoders=encoded, shuffle_files=False)
            for number, example in enumerate(examples.as_numpy_iterator(), start=1):
                file = Path(example["file_name"].decode()).name
                target = place / folder_name / names[example["label"]] / file
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    unfinished = target.with_name(f"{target.name}.unfinished")
                    unfinished.write_bytes(example["image"])
                    unfinished.replace(target)
                progress(split, number, total)
    except OSError:
        raise
    except Exception as error:  # the library may fail anywhere on a damaged folder
        raise ValueError(
            f"{prepared}: expected ImageNet as TensorFlow Datasets prepares it, with train and validation. "
            f"Received: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def _labeled(split: folder.Listed, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    counts = [len(split.images.get(name, ())) for name in names]
    paths = [path for name in names for path in split.images.get(name, ())]
    return paths, np.repeat(np.arange(len(names), dtype=np.int64), counts)


def _read_list(path: Path, place: Path) -> tuple[list[str], np.ndarray]:
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(files.read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        file, _, label = line.strip().rpartition(" ")
        if not file or not label.isdecimal() or len(label) > _LONGEST_LABEL:
            raise ValueError(f"{path}, line {number}: expected 'train/<class>/<file> <label>'. Received: {line[:80]!r}")
        paths.append(str(place / file))
        labels.append(int(label))
    if not paths:
        raise ValueError(f"{path}: expected a line for each image. Received: an empty file")
    missing = next((name for name in paths if not Path(name).is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{path} lists {missing}, which does not exist")
    return paths, np.array(labels, np.int64)


def _names_of_labels(listed: list[tuple[list[str], np.ndarray]], lists: list[Path]) -> tuple[str, ...]:
    """Returns the class folders by label; both lists must agree."""
    names: dict[int, str] = {}
    for (paths, labels), origin in zip(listed, lists, strict=True):
        for path, label in zip(paths, labels, strict=True):
            name = Path(path).parent.name
            if names.setdefault(int(label), name) != name:
                raise ValueError(
                    f"{origin}: expected one class for label {label}. Received: {names[int(label)]} and {name}"
                )
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{lists[0]}: expected the labels 0 to {len(names) - 1}. Received: {sorted(names)[:10]}")
    return tuple(names[label] for label in range(len(names)))
