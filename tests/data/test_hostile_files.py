"""Files that claim more than they hold, are no regular files, or are damaged where only a checksum tells."""

import gzip
import io
import lzma
import os
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.data import makers
from tf_robust_sparse import data
from tf_robust_sparse.data import files
from tf_robust_sparse.data.readers import idx, npz, svhn

MEBIBYTE = 1 << 20


@pytest.fixture
def frugal():
    """Fails a test that takes more than 64 MiB or 20 seconds."""
    tracemalloc.start()
    begin = time.process_time()
    yield
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 64 * MEBIBYTE and time.process_time() - begin < 20


def sparse_tar(size):
    """An archive of a few hundred bytes with a member that is `size` bytes of nothing, as GNU tar writes it."""
    member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(1024))


def test_a_sparse_archive_that_claims_a_terabyte(tmp_path, frugal):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(sparse_tar(1 << 40))
    assert path.stat().st_size < 300
    with pytest.raises(ValueError, match=rf"{path}: expected a complete tar archive.*test_batch is sparse"):
        data.load("cifar10", tmp_path)


def test_an_archive_whose_head_unpacks_without_end(tmp_path, frugal):
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 1 << 33
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(member.tobuf() + bytes(12 * MEBIBYTE)))
    with pytest.raises(ValueError, match="a complete tar archive"):
        files.read_tar(path, ["test_batch"], most=8 * MEBIBYTE)


@pytest.mark.parametrize(
    "ending, pack", [(".gz", gzip.compress), (".xz", lambda content: lzma.compress(content, preset=0))]
)
def test_packed_files_are_bounded_and_read_to_their_checksum(tmp_path, ending, pack, frugal):
    path = tmp_path / f"a{ending}"
    whole = pack(bytes(range(256)) * 200)
    path.write_bytes(whole)
    assert len(files.read_bytes(path)) == 51_200
    for at in range(0, len(whole), 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            assert files.read_bytes(path) == bytes(range(256)) * 200
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected a complete {ending} file")
    path.write_bytes(pack(bytes(9 * MEBIBYTE)))
    with pytest.raises(ValueError, match="more than 8388608 bytes"):
        files.read_bytes(path, most=8 * MEBIBYTE)


def test_a_damaged_archive_is_told_by_the_checksum_at_its_end(tmp_path):
    content, arrays = makers.cifar_files(10, False, per_file=1)
    path = tmp_path / "cifar-10-python.tar.gz"
    makers.write_tar(path, "cifar-10-batches-py", content)
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(40):
        at = int(rng.integers(len(whole)))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
        try:
            makers.assert_holds(data.load("cifar10", tmp_path), arrays)
        except ValueError:
            refused += 1
    assert refused > 30
    path.write_bytes(gzip.decompress(whole))  # as some browsers leave it
    makers.assert_holds(data.load("cifar10", tmp_path), arrays)


def with_header(shape, descr="|u1", rest=b"abcd"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + rest


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize(
    "content, message",
    [
        (with_header((1 << 40,)), "x has 4 bytes, 1099511627776 for its shape"),
        (with_header((1 << 62, 1 << 62)), "x has 4 bytes"),
        (with_header((-2, -2)), "x has 4 bytes"),
        (with_header((2,)), "x has 4 bytes, 2 for"),  # the rest is under the checksum too
        (with_header((4,), "|O"), "never unpickled"),
        (with_header((4,), "|S0"), "x has 4 bytes"),
        (with_header((1,), [("a", "<i4")]), "never unpickled"),
        (b"\x93NUMPY\x01\x00\x40\x1f" + b"[" * 8000, "npz"),
        (b"\x93NUMPY\x09\x00", "npz"),
        (b"", "npz"),
    ],
)
def test_arrays_that_claim_another_size(tmp_path, content, message, frugal):
    write_zip(tmp_path / "a.npz", {"x": content})
    with pytest.raises(ValueError, match=message) as error:
        npz.read_arrays(tmp_path / "a.npz")
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=str(tmp_path)):
        npz.read_array(tmp_path / "x")


def test_an_archive_of_arrays_that_unpacks_to_far_more_than_its_size(tmp_path, frugal, monkeypatch):
    monkeypatch.setattr(files, "MOST", 8 * MEBIBYTE)
    write_zip(tmp_path / "a.npz", {"x": with_header((9 * MEBIBYTE,), rest=bytes(9 * MEBIBYTE))})
    with pytest.raises(ValueError, match=r"members of \d+ bytes unpacked, more than 8388608"):
        npz.read_arrays(tmp_path / "a.npz")


def test_labels_that_would_be_any_number_of_classes(tmp_path):
    x, y = makers.images(2, (8, 8, 3)), np.array([0, 2**62])
    path = tmp_path / "a.npz"
    for labels in (y, y.astype(np.uint64) * 3):
        np.savez(path, x_train=x, y_train=labels, x_test=x, y_test=np.zeros(2, int))
        with pytest.raises(ValueError, match=rf"{path}.*number the classes 0, 1, 2"):
            data.load(path)


def test_channels_first_arrays_are_named(tmp_path):
    x = makers.images(2, (3, 32, 32))
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1], x_test=x, y_test=[0, 1])
    with pytest.raises(ValueError, match=r"a\.npz.*channels last.*transpose"):
        data.load(tmp_path / "a.npz")


def test_pipes_are_never_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (files.read_bytes, idx.read_array, svhn.read_split, lambda path: files.read_tar(path, ["a"])):
        with pytest.raises(ValueError, match=rf"{pipe}: expected a file"):
            read(pipe)
    with pytest.raises(FileNotFoundError):
        npz.read_arrays(pipe)


def test_packed_variables_of_matlab_are_read_to_their_checksum(tmp_path):
    import scipy.io

    path = tmp_path / "train_32x32.mat"
    x, y = makers.images(2), np.array([[1], [10]], np.uint8)
    scipy.io.savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": y}, do_compression=True)
    whole = path.read_bytes()
    for at in (*range(128, 160), *range(len(whole) - 40, len(whole)), *range(200, len(whole) - 50, 997)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        try:
            images, labels = svhn.read_split(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected ")
        else:
            np.testing.assert_array_equal(images, x)
            assert labels.tolist() == [1, 0]
