import collections
import copyreg
import io
import os
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

from tf_robust_sparse.data import restricted_pickle

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(3, dtype=">i4"),
    np.array(2.5),
    np.zeros((0, 3), np.uint8),
    np.array(["a", "bcd"]),
    np.array([True, False]),
    np.array([1 + 2j]),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_round_trip(array, protocol):
    loaded = restricted_pickle.load(pickle.dumps([array, array], protocol))
    assert type(loaded[0]) is np.ndarray and loaded[0].dtype == array.dtype
    np.testing.assert_array_equal(loaded[0], array)
    assert loaded[0] is loaded[1]
    assert loaded[0].flags.writeable


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_round_trip(protocol):
    value = {
        "list": [1, 2.5, None, True, "text", b"bytes", 10**30],
        "tuple": (1, (2, [3])),
        "set": {1, 2},
        "frozen": frozenset({3}),
        "ordered": collections.OrderedDict(a=1, b=(2,)),
        "scalars": [np.float32(1.5), np.int64(-3)],
    }
    loaded = restricted_pickle.load(pickle.dumps(value, protocol))
    assert loaded == value
    assert type(loaded["ordered"]) is collections.OrderedDict and type(loaded["scalars"][0]) is np.float32


def test_nested_containers_get_their_arrays():
    value = {"a": [(np.ones(2), [np.zeros(1)])], "o": collections.OrderedDict(w=np.ones(3))}
    loaded = restricted_pickle.load(pickle.dumps(value, 2))
    np.testing.assert_array_equal(loaded["a"][0][0], np.ones(2))
    np.testing.assert_array_equal(loaded["a"][0][1][0], np.zeros(1))
    np.testing.assert_array_equal(loaded["o"]["w"], np.ones(3))


def test_cycles_are_refused():
    value: list = [np.ones(1)]
    value.append(value)
    with pytest.raises(pickle.UnpicklingError, match="contains itself"):
        restricted_pickle.load(pickle.dumps(value))


def test_shared_values_stay_shared():
    array, row = np.ones(2), [1, 2]
    loaded = restricted_pickle.load(pickle.dumps({"a": [row, row, (array,)], ("k", (1, None)): (array,)}))
    assert loaded["a"][0] is loaded["a"][1] == [1, 2]
    assert loaded["a"][2][0] is loaded["k", (1, None)][0]


def test_reads_path_file_and_bytes(tmp_path):
    data = pickle.dumps([1])
    (tmp_path / "a").write_bytes(data)
    assert restricted_pickle.load(tmp_path / "a") == restricted_pickle.load(io.BytesIO(data)) == [1]
    assert restricted_pickle.load(data) == restricted_pickle.load(str(tmp_path / "a")) == [1]


@pytest.mark.parametrize("encoding, text", [("bytes", b"\xe9"), ("latin1", "\xe9")])
def test_python_2_strings_and_arrays(encoding, text):
    # As Python 2 wrote {"k": "\xe9", "a": array([1, 2], uint8)}: byte strings by SHORT_BINSTRING.
    def string(value):
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR(K\x01(K\x02t"
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tbI00\n" + string(b"\x01\xff") + b"tb"
    )
    data = b"\x80\x02}(" + string(b"k") + string(b"\xe9") + string(b"a") + array + b"u."
    loaded = restricted_pickle.load(data, encoding=encoding)
    keys = [b"k", b"a"] if encoding == "bytes" else ["k", "a"]
    assert loaded[keys[0]] == text
    np.testing.assert_array_equal(loaded[keys[1]], np.array([1, 255], np.uint8))


def test_arrays_of_objects_hold_plain_values():
    ragged = np.empty((1, 3), dtype=object)
    ragged[0, 0], ragged[0, 1], ragged[0, 2] = np.ones(2), [np.zeros(3)], "text"
    loaded = restricted_pickle.load(pickle.dumps(ragged))
    assert loaded.shape == (1, 3) and type(loaded[0, 0]) is np.ndarray
    np.testing.assert_array_equal(loaded[0, 1][0], np.zeros(3))


MARKER: list = []


class Attack:
    """Runs something when unpickled without care."""

    def __reduce__(self):
        return os.system, ("touch hacked",)


class BuildAttack:
    """Would run its own `__setstate__`."""

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        MARKER.append(state)


def object_array():
    array = np.empty(1, dtype=object)
    array[0] = Attack()
    return array


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        Attack(),
        BuildAttack(),
        {"data": [1, (2, Attack())]},
        object_array(),
        [np.ones(1), object_array()],
        collections.OrderedDict(a=Attack()),
        eval,
        getattr,
        np.load,
        collections.Counter("a"),
        np.ma.masked_array([1.0], [True]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["2020-01-01"], "M8[D]"),
    ],
    ids=lambda v: getattr(v, "__name__", type(v).__name__),
)
def test_refuses_everything_else(value, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=r"this pickle (tries to|holds)") as error:
        restricted_pickle.load(pickle.dumps(value, protocol))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()) and not MARKER


def test_message_names_the_import():
    with pytest.raises(
        pickle.UnpicklingError, match=r"tries to import (posix|os)\.system; only plain containers and NumPy arrays"
    ):
        restricted_pickle.load(pickle.dumps(Attack()))


@pytest.mark.parametrize("module, name", [("os", "system"), ("numpy", "load"), ("builtins", "exec"), ("numpy", "os")])
def test_refuses_imports_by_any_opcode(module, name):
    as_global = f"c{module}\n{name}\n(S'x'\ntR.".encode()
    as_inst = f"(S'x'\ni{module}\n{name}\n.".encode()
    as_obj = f"(c{module}\n{name}\nS'x'\no.".encode()
    as_stack_global = (
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93)R."
    )
    for data in (as_global, as_inst, as_obj, as_stack_global):
        with pytest.raises(pickle.UnpicklingError):
            restricted_pickle.load(data)


def test_dotted_names_do_not_reach_into_modules():
    data = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.ndarray\.__class__"):
        restricted_pickle.load(data)


@pytest.mark.parametrize("opcode", [b"\x82\x7b", b"\x83\x7b\x00", b"\x84\x7b\x00\x00\x00"])
def test_refuses_the_extension_registry_even_when_cached(opcode):
    copyreg.add_extension("os", "getcwd", 0x7B)
    try:
        assert pickle.loads(opcode + b".") is os.getcwd  # now the process caches it
        with pytest.raises(pickle.UnpicklingError, match="extension registry"):
            restricted_pickle.load(opcode + b")R.")
    finally:
        copyreg.remove_extension("os", "getcwd", 0x7B)


@pytest.mark.parametrize("data", [b"Pname\n.", b"\x80\x02U\x04nameQ."])
def test_refuses_persistent_ids(data):
    with pytest.raises(pickle.UnpicklingError, match="persistent id"):
        restricted_pickle.load(data)


DTYPE_O = b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR"


@pytest.mark.parametrize(
    "data",
    [
        # ndarray((1,), dtype("O"), buffer): NumPy itself would take the bytes for a pointer
        b"cnumpy\nndarray\n((I1\nt" + DTYPE_O + b"S'AAAAAAAA'\ntR.",
        # a dtype "O" whose flags claim that it holds no objects, and an array filled from bytes with it
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
        + DTYPE_O
        + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'AAAAAAAA'\ntb.",
        b"cnumpy.core.numeric\n_frombuffer\n(S'AAAAAAAA'\n" + DTYPE_O + b"(I1\ntS'C'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(" + DTYPE_O + b"S'AAAAAAAA'\ntR.",
        # sizes that do not fit the bytes
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I99\ntcnumpy\ndtype\n(S'f8'\n"
        b"I00\nI01\ntRI00\nS'AAAAAAAA'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I-1\ntcnumpy\ndtype\n(S'f8'\n"
        b"I00\nI01\ntRI00\nS'AAAAAAAA'\ntb.",
        # an array class of the file's own
        b"cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntS'b'\ntR.",
        # an array that is never filled
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
        # a constructor kept, or changed by BUILD with a dictionary and with slots
        b"cnumpy\ndtype\n.",
        b"cnumpy\ndtype\n}S'_function'\nI1\nsb.",
        b"cnumpy\ndtype\n(N}S'_function'\nI1\nstb.",
        b"c_codecs\nencode\n(S'aa'\nS'rot13'\ntR.",
        # a dtype by another name, and one with fields
        b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR.",
        b"cnumpy\ndtype\n(S'f4'\nI00\nI01\ntR(I3\nS'|'\nN(S'a'\nt}I-1\nI-1\nI0\ntb.",
    ],
)
def test_refuses_tampered_arrays(data):
    with pytest.raises(pickle.UnpicklingError):
        restricted_pickle.load(data)
    # and the constructors still work
    np.testing.assert_array_equal(restricted_pickle.load(pickle.dumps(np.ones(2), 2)), np.ones(2))


def test_does_not_change_the_process_wide_dtype():
    data = b"cnumpy\ndtype\n(S'f8'\nI00\nI00\ntR(I3\nS'>'\nNNNI-1\nI-1\nI0\ntb."
    assert restricted_pickle.load(data) == np.dtype(">f8")
    assert np.dtype("f8").isnative


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_cut_gives_an_unpickling_error(protocol):
    data = pickle.dumps({"a": np.arange(3), "b": [1, "x"]}, protocol)
    for end in range(len(data)):
        with pytest.raises(pickle.UnpicklingError):
            restricted_pickle.load(data[:end])


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04" + struct.pack("<Q", 2**40), b"(" * 100 + b"."])
def test_damage_gives_an_unpickling_error(data):
    with pytest.raises(pickle.UnpicklingError):
        restricted_pickle.load(data)


def pairs(levels, start=b"N"):
    """Tuples of two, each of which holds the one below twice: 2**levels entries in all."""
    return start + b"2\x86" * levels


def many_tuple_keys(count):
    return b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"\x85N" for i in range(count)) + b"u."


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x80\x04)" + b"\x85" + b"2\x86" * 26 + b".", "repeats them beyond"),  # shared: 2**27 entries
        (b"}" + pairs(60) + b"Ns.", "a key of more than 100 entries"),
        (b"\x8f(" + pairs(60) + b"\x90.", "a key of more than 100 entries"),
        (b"(" + pairs(60) + b"\x91.", "a key of more than 100 entries"),
        (b"cbuiltins\nset\n]" + pairs(60) + b"a\x85R.", "a key of more than 100 entries"),
        (b"ccollections\nOrderedDict\n](" + pairs(60) + b"Nta\x85R.", "a key of more than 100 entries"),
        (b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.", "nests more than 100"),  # deep: the stack overflows
        (b")" + b"\x85" * 1_000_000 + b".", "nests more than 100"),
        (b"(l" * 10_000 + b"a" * 9_999 + b".", "nests more than 100"),
        # lists that share lists, of which numpy.asarray would make an array of 2**30 entries
        (b"]Na" + b"q\x000]h\x00ah\x00a" * 30 + b".", "repeats them beyond"),
        (b"]q\x00h\x00ah\x00a.", "contains itself"),
        # an index that the memo would be stretched to
        (b"\x80\x04]r" + struct.pack("<I", 2**26) + b".", "place 67108864 after 3 opcodes"),
        (b"Np99999999999\n.", "place 99999999999"),
        (b"Ng-1\n.", "place -1"),
        # a mebibyte, copied by four opcodes at a time
        (
            b"X"
            + struct.pack("<I", 1 << 20)
            + b"a" * (1 << 20)
            + b"q\x000]("
            + b"c_codecs\nencode\nh\x00\x85R" * 1000
            + b"e.",
            "instructions for more than",
        ),
        (
            b"](" + b"N" * 10_000 + b"eq\x000(" + b"cbuiltins\nset\nh\x00\x85R" * 200 + b"t.",
            "instructions for more",
        ),
        (b"(" + b"\x8f" * 100_000 + b"t.", "instructions for more than"),
        (b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".", "an integer of 8388607 bits"),
        (b"}" + b"\x8a\x0a" + b"\x7f" * 10 + b"Ns.", "more than 64 bits"),  # its hash can be any
        (many_tuple_keys(10_001), "10000 tuples as keys"),
        # the message must not print what it refuses
        (b"cnumpy\ndtype\n" + pairs(60) + b"\x85R.", "TypeError"),
        (b"c_codecs\nencode\nX\x00\x00\x00\x00" + pairs(60) + b"\x86R.", "received encoding tuple"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
            + pairs(60)
            + b"tcnumpy\ndtype\n(S'f8'\nI00\nI01\ntRI00\nS'AAAAAAAA'\ntb.",
            "beginning with tuple",
        ),
    ],
)
def test_a_small_file_takes_little_time_and_memory(data, message):
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(pickle.UnpicklingError, match=message) as error:
            restricted_pickle.load(data)
        seconds, most = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert most < 40 * len(data) + 24e6
    assert seconds < 5  # under tracemalloc, which is slow; most take milliseconds


def test_attributes_of_an_ordered_dictionary_are_left_out():
    value = collections.OrderedDict(weight=np.ones(2))
    value._metadata = {"version": 1}  # as PyTorch's state dicts have
    loaded = restricted_pickle.load(pickle.dumps(value, 2))
    assert list(loaded) == ["weight"] and not vars(loaded)
