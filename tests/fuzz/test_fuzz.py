"""No damaged file does more than raise one line that names it.

A mutation is read as the original where a checksum stands over it, as something well-formed, or refused by a
`ValueError` or `OSError` of one line, within seconds and a few hundred megabytes. The suite runs some mutations of each
reader; all of them: `python -m pytest tests/fuzz -m fuzz`.
"""

import contextlib
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import cases
from tests.fuzz.mutations import mutated

MANY = 1500
SECONDS = 10.0  # of one read; the slowest builds a network
MOST_MORE = 768 << 20  # bytes of resident memory beyond what was there before
LIMIT_MORE = 6 << 30  # of address space, beyond which memory runs out

NAMES = (
    *("idx", "idx, gzip", "cifar", "cifar, tar.gz", "mat", "mat, packed", "npy", "npz", "npz, a member", "pickle"),
    *("pickle of anything", "safetensors", "npz of weights", "h5", "keras", "keras, its configuration"),
    *("keras, its weights", "trs", "trs, its head", "trs, its body", "yaml", "png", "jpeg", "tsv"),
    *("state", "state, its examples"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return cases.make(tmp_path_factory.mktemp("whole"))


def test_every_case_is_listed_and_reads_what_was_written(made, tmp_path):
    assert tuple(made) == NAMES
    for case in made.values():
        same(case.read(case.write(tmp_path, case.content)), case.read(case.write(tmp_path, case.content)))


@pytest.mark.parametrize("name", NAMES)
def test_some_mutations(name, made, tmp_path):
    check(name, made[name], made[name].few, tmp_path)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_many_mutations(name, made, tmp_path):
    check(name, made[name], round(MANY * made[name].share), tmp_path)


def check(name, case, count, folder):
    expected = case.read(case.write(folder, case.content))
    with bounded_memory():
        for seed in range(count):
            what = f"{name}, seed {seed}"
            part = mutated(case.content, [NAMES.index(name), seed])
            path = case.write(folder, part)
            begin = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = case.read(path)
            except (ValueError, OSError) as error:
                line = str(error)
                assert "\n" not in line and len(line) < 1500, f"{what}: {line[:3000]}"
                assert path.name in line or str(folder) in line, f"{what}: {line}"
            except BaseException as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
            else:
                if case.sealed:
                    same(found, expected, what)
            seconds = time.process_time() - begin
            assert seconds < SECONDS, f"{what}: {seconds} s"


def same(found, expected, what=""):
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), what
        for one, other in zip(found, expected, strict=True):
            same(one, other, what)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, err_msg=what)
    else:
        assert found == expected, what


@contextlib.contextmanager
def bounded_memory():
    """Fails where the process takes much more memory inside than before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + LIMIT_MORE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert _status("VmHWM") - before < MOST_MORE


def _status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) << 10
