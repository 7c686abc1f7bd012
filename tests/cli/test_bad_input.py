"""Bad input ends with code 1 or 2 and one line with the flag, what was expected and what came; nothing is left."""

import functools
import json
import os
import pickle

import h5py
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import EVALUATE, IMPORT, TINY, TRAIN, run_script
from tests.data import makers

UNWRITABLE = "/proc/trs/run"  # even for those who may write everywhere
ARGUMENTS = [
    ("connectivity above 1", ["-s", "--connectivity=1.5"], "--connectivity=1.5", "in (0, 1]"),
    ("connectivity of a dense network", ["--connectivity=0.1"], "--connectivity=0.1", "--sparse_train"),
    ("unknown data", ["--data=imagenet21k"], "--data=imagenet21k", "one of mnist"),
    ("unknown model", ["--model=vgg"], "--model=vgg", "vgg16|"),
    ("epsilon in levels", ["--epsilon=8"], "--epsilon=8", "8/255"),
    ("epsilon divided by zero", ["--epsilon=8/0"], "--epsilon=8/0", "a number or a fraction"),
    ("a flag that does not exist", ["--epoch=3"], "--epoch", "such as epochs"),
    ("a value that is missing", ["--output_dir=x", "--seed"], "seed", "Missing value"),
    ("a word without a flag", ["resnet18"], "resnet18", "unexpected arguments"),
    ("no such flagfile", ["--flagfile=flags/no.flags"], "--flagfile=flags/no.flags", "a file of flags"),
    ("a flagfile that is a directory", ["--flagfile=flags"], "--flagfile=flags", "a file of flags"),
    ("an empty place", ["--output_dir=x", "--output_dir="], "--output_dir=", "has no value"),
    ("a checkpoint to resume", ["--output_dir=x", "--resume", "x/checkpoints/last.h5"], "--resume", "--output_dir=x,"),
    ("a place to write to", [f"--output_dir={UNWRITABLE}"], f"--output_dir={UNWRITABLE}", "a place to write to"),
    ("rst without labels", ["--objective=rst"], "--objective=rst", "--pseudo_labels=FILE"),
    ("labels without rst", ["--pseudo_labels=x.npz"], "--pseudo_labels=x.npz", "--objective=rst"),
    ("sparse and dense", ["-s", "--sparsifier=none"], "--sparsifier=none", "drop one"),
    ("pruning that ends first", ["--sparsifier=magnitude", "--pruning_begin=.6"], "--pruning_begin=0.6", "less than"),
    ("workers without an address", ["--strategy=multi_worker"], "--strategy=multi_worker", "TF_CONFIG"),
    ("resume and overwrite", ["--resume", "--overwrite"], "--resume", "--overwrite"),
    ("class count of other data", ["--n_classes=100"], "--n_classes=100", "expected 10"),
    ("more images than there are", ["--train_examples=100000"], "--train_examples=100000", "8000"),
    ("nothing to select by", ["--validation_examples=0"], "--validation_examples=0", "--select=last"),
    ("all images held out", ["--validation_examples=256"], "--validation_examples=256", "than the 256 training images"),
    ("a batch of more than all", ["--batch_size=1000"], "--batch_size=1000", "make `batch_size` smaller"),
    ("a size of known data", ["--image_size=64"], "--image_size=64", "`image_size` resizes a folder"),
    (
        "no such file of pseudo-labels",
        ["--objective=rst", "--pseudo_labels=no.npz"],
        "--pseudo_labels=no.npz",
        "no.npz",
    ),
    ("no finished run", ["--load_model"], "--load_model", "the directory of a finished run"),
]


def assert_explained(done, *words):
    """One line on standard error, an exit code of bad input, and these words in the line."""
    assert done.code in (1, 2), done
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    return line


@pytest.mark.parametrize(("arguments", "flag", "expected"), [a[1:] for a in ARGUMENTS], ids=[a[0] for a in ARGUMENTS])
def test_arguments(arguments, flag, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    output = tmp_path / "run"
    where = () if any(word.startswith("--output_dir=") for word in arguments) else (f"--output_dir={output}",)
    done = run_script(TRAIN, *where, *TINY, *arguments)
    line = assert_explained(done, flag, expected)
    assert done.code == 2 or any(word in line for word in ("--batch_size=", "--image_size=", "--pseudo_labels="))
    assert not output.exists()


def own_npz(folder, change):
    content = {
        "x_train": makers.images(64, (28, 28, 1)),
        "y_train": makers.labels(64),
        "x_test": makers.images(16, (28, 28, 1)),
        "y_test": makers.labels(16),
    }
    path = folder / "own.npz"
    np.savez(path, **change(content))
    return f"--data={path}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: {**c, "x_train": c["x_train"].astype("float32")}, "in [0, 1]"),
        (lambda c: {**c, "x_test": c["x_test"] / 127.5 - 1}, "in [0, 1]"),
        (lambda c: {**c, "x_train": c["x_train"] * np.float32("nan")}, "in [0, 1]"),
        (lambda c: {**c, "y_train": c["y_train"] - 1}, "integers in [0, "),
        (lambda c: {**c, "y_train": c["y_train"].astype(float)}, "one for each image"),
        (lambda c: {name: c[name] for name in ("x_train", "y_train")}, "y_test"),
        (lambda c: {**c, "y_test": c["y_test"].astype(object)}, "plain arrays"),
    ],
    ids=["bytes as floats", "minus one to one", "not a number", "label -1", "float labels", "no test", "objects"],
)
def test_arrays_out_of_range(change, expected, tmp_path):
    data, output = own_npz(tmp_path, change), tmp_path / "run"
    done = run_script(TRAIN, *TINY, "--train_examples=64", "--test_examples=16", data, f"--output_dir={output}")
    assert_explained(done, data, expected, "Received: ")
    assert not output.exists()


def test_a_network_for_larger_images(tmp_path):
    data = own_npz(tmp_path, lambda c: {name: a[:, :8, :8] if a.ndim == 4 else a for name, a in c.items()})
    tiny = (*TINY, "--train_examples=64", "--test_examples=16", "--batch_size=16", data)
    done = run_script(TRAIN, *tiny, "--model=vgg16", f"--output_dir={tmp_path / 'run'}")
    assert_explained(done, f"--model=vgg16 {data}: ", "at least", "Received: input_shape=(8, 8, 1)")
    assert not (tmp_path / "run").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_idx(folder):
    makers.write_idx(folder)
    cut(folder / "train-images-idx3-ubyte.gz")


def cut_mat(folder):
    import scipy.io

    for split in ("train", "test"):
        content = {"X": makers.images(8).transpose(1, 2, 3, 0), "y": makers.labels(8)[:, None] + 1}
        scipy.io.savemat(folder / f"{split}_32x32.mat", content)
    cut(folder / "train_32x32.mat")


def cut_archive(folder):
    makers.write_tar(folder / "cifar-10-python.tar.gz", "cifar-10-batches-py", makers.cifar_files(10, False)[0])
    cut(folder / "cifar-10-python.tar.gz")


@pytest.mark.parametrize(
    ("name", "prepare", "word"),
    [
        ("cifar10", lambda folder: None, "no files of cifar10"),
        ("mnist", lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(b""), "expected all"),
        ("mnist", cut_idx, "train-images-idx3-ubyte.gz"),
        ("svhn", cut_mat, "train_32x32.mat"),
        ("cifar10", cut_archive, "cifar-10-python.tar.gz"),
    ],
    ids=["empty folder", "one of four files", "cut idx", "cut mat", "cut archive"],
)
def test_damaged_and_missing_data(name, prepare, word, tmp_path):
    folder, output = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    prepare(folder)
    done = run_script(TRAIN, *TINY, f"--data={name}", f"--data_dir={folder}", f"--output_dir={output}")
    assert_explained(done, f"--data={name} --data_dir={folder}: ", word)
    assert not output.exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


class EvilVariable:
    def __reduce__(self):
        return functools.partial(os.system, "touch hacked"), ()


@pytest.mark.parametrize("content", [Evil(), {"data": Evil()}, EvilVariable()])
def test_pickles_that_import_anything(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(content))
    own = own_npz(tmp_path, lambda c: {name: np.repeat(a, 2, -1)[:, :1] if a.ndim == 2 else a for name, a in c.items()})
    tiny = (*TINY, own, "--train_examples=64", "--test_examples=16", "--output_dir=run")
    for arguments in (
        (TRAIN, *tiny, "--objective=rst", "--pseudo_labels=evil.pickle"),
        (IMPORT, "--weights=evil.pickle", own, "--model=small_cnn", "--output_dir=run"),
    ):
        assert_explained(run_script(*arguments), "=evil.pickle", "this pickle tries to")
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "run").exists()


def test_import_of_what_does_not_fit(tmp_path):
    weights = tmp_path / "a.pickle"
    common = ("--data=fashion_mnist_sample", "--model=small_cnn", f"--output_dir={tmp_path / 'run'}")
    assert_explained(run_script(IMPORT, *common), "--weights is missing")
    assert_explained(run_script(IMPORT, *common, f"--weights={weights}"), f"--weights={weights}", "does not exist")
    weights.write_bytes(pickle.dumps({"param_list": [np.zeros((3, 3), np.float32)] * 5}))
    assert_explained(run_script(IMPORT, *common, f"--weights={weights}"), f"--weights={weights}", "holds 5 arrays")
    assert not (tmp_path / "run").exists()


def test_directories_in_use(finished, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert_explained(run_script(TRAIN, *TINY, f"--output_dir={finished}"), f"--output_dir={finished}", "a finished run")
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    done = run_script(TRAIN, *TINY, f"--output_dir={unfinished}")
    assert_explained(done, f"--output_dir={unfinished}", "an unfinished run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for more in ([], ["--overwrite"], ["--resume"]):
        done = run_script(TRAIN, *TINY, f"--output_dir={tmp_path / 'other'}", *more)
        assert_explained(done, f"--output_dir={tmp_path / 'other'}", "thesis.tex")
    (tmp_path / "file").touch()
    assert_explained(run_script(TRAIN, *TINY, f"--output_dir={tmp_path / 'file'}"), "--output_dir=", "a file")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the finished run as if it had been interrupted."""
    directory = tmp_path / "copy"
    (directory / "checkpoints").mkdir(parents=True)
    for name in ("run.flags", "checkpoints/last.weights.h5"):
        (directory / name).write_bytes((finished / name).read_bytes())
    return directory


def resumed(directory, *more):
    return run_script(TRAIN, f"--flagfile={directory / 'run.flags'}", f"--output_dir={directory}", "--resume", *more)


@pytest.mark.parametrize(
    "change",
    ["--model=lenet5_caffe", "--connectivity=0.2", "--batch_size=32", "--seed=3", "--objective=mat", "--epochs=7"],
)
def test_resume_with_flags_of_another_run(change, unfinished):
    content = (unfinished / "checkpoints/last.weights.h5").read_bytes()
    assert_explained(resumed(unfinished, change), "--resume=True: ", change[2:].partition("=")[0] + "=", "Received: ")
    assert (unfinished / "checkpoints/last.weights.h5").read_bytes() == content


def rewritten(path, change):
    """Writes the checkpoint anew with other content and a checksum that fits."""
    from tf_robust_sparse.saving import checkpoint

    content = checkpoint._read(path)
    variables = change(dict(content.variables))
    text = json.dumps(content.metadata)
    digest = checkpoint.hashlib.sha256(text.encode())
    with h5py.File(path, "w") as file:
        file.attrs["format"] = checkpoint._FORMAT
        file.create_dataset("metadata", data=np.frombuffer(text.encode(), np.uint8))
        group = file.create_group("variables")
        for key in sorted(variables):
            dtype, value = variables[key]
            group.create_dataset(key, data=value).attrs["dtype"] = dtype
            checkpoint._add(digest, key, dtype, value)
        file.attrs["sha256"] = digest.hexdigest()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda v: {k: (t, np.repeat(a, 10, -1) if "classifier" in k and a.ndim else a) for k, (t, a) in v.items()},
            "the network needs (",
        ),
        (lambda v: {k: x for k, x in v.items() if "conv1" not in k}, "which the network needs"),
        (lambda v: {**v, "conv9/theta": v["classifier/bias"]}, "which the network does not have"),
    ],
    ids=["class count", "layer missing", "layer too many"],
)
def test_resume_from_a_checkpoint_of_another_network(change, expected, unfinished):
    rewritten(unfinished / "checkpoints/last.weights.h5", change)
    assert_explained(
        resumed(unfinished), "--resume=True: ", "the checkpoint holds" if "needs (" in expected else expected
    )


def test_resume_from_a_damaged_checkpoint(unfinished):
    cut(unfinished / "checkpoints/last.weights.h5")
    assert_explained(resumed(unfinished), "--resume=True: ", "is damaged", "last.weights.h5")


def test_evaluation_of_what_is_no_network(finished, tmp_path):
    data = ("--data=fashion_mnist_sample", "--test_examples=16", "--pgd_iters=1", "--pgd_restarts=1")
    assert_explained(run_script(EVALUATE, *data, f"--saved_model={tmp_path / 'no'}"), "--saved_model", "does not exist")
    assert_explained(run_script(EVALUATE, *data, f"--network={tmp_path}"), f"--network={tmp_path}", "saved_model.pb")
    network = ("--saved_model=" + str(finished / "serve"), f"--results_file={tmp_path / 'r.json'}")
    own = own_npz(tmp_path, lambda c: {**c, "x_train": makers.images(64), "x_test": makers.images(16)})
    assert_explained(run_script(EVALUATE, *data, *network, own), "--saved_model=", own, "28x28x1", "32x32x3")
    own = own_npz(tmp_path, lambda c: {**c, "y_test": c["y_test"] + 90})
    assert_explained(run_script(EVALUATE, *data, *network, own), "--saved_model=", own, "label")
    assert_explained(run_script(EVALUATE, *data, *network, f"--results_file={tmp_path}"), "--results_file=", "a file")
    assert not (tmp_path / "r.json").exists()


def test_what_foolbox_cannot_use_or_write_is_told_before_the_attack(finished, tmp_path, monkeypatch):
    def attacked(*_, **__):
        raise AssertionError("an attack has run")

    monkeypatch.setattr(trs.evaluation, "foolbox_linf_pgd", attacked)
    (tmp_path / "file").touch()
    (tmp_path / "foolbox.json").mkdir()
    (tmp_path / "serve").symlink_to(finished / "serve")
    data = ("--data=fashion_mnist_sample", f"--saved_model={tmp_path / 'serve'}")
    assert_explained(run_script(EVALUATE, *data, "--padding_mode=symmetric"), "--padding_mode", "read from its file")
    below = tmp_path / "file" / "r.json"
    assert_explained(run_script(EVALUATE, *data, f"--results_file={below}"), f"--results_file={below}", "the file ")
    done = run_script(EVALUATE, *data)
    assert_explained(done, f"--results_file={tmp_path / 'foolbox.json'}", "a directory of that name")
    done = run_script(EVALUATE, *data, f"--results_file={UNWRITABLE}")
    assert_explained(done, f"--results_file={UNWRITABLE}: expected a place to write to")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "run"
    done = run_script(TRAIN, *TINY, f"--output_dir={output}")
    assert_explained(done, f"--output_dir={output}", f"the file {tmp_path / 'file'}")


def test_the_cause_is_shown_on_request(tmp_path):
    with pytest.raises(ValueError, match="no files of cifar10"):
        run_script(TRAIN, *TINY, "--data=cifar10", f"--data_dir={tmp_path}", "--traceback")
