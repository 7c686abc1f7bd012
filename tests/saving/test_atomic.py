"""A save that fails leaves what was there, and no rubbish."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tf_robust_sparse.saving import atomic
from tf_robust_sparse.saving.atomic import check_replaceable, replace_directory, replace_file


def no_space(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


ROOT = Path(__file__).parents[2]


def names(path):
    return sorted(each.name for each in path.iterdir())


@pytest.fixture
def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_file_is_created_with_its_directory(tmp_path):
    with replace_file(tmp_path / "a" / "b.txt") as temporary:
        assert temporary.parent == tmp_path / "a"
        assert temporary.name == f".b.txt.tmp-{os.getpid()}.txt"
        temporary.write_text("new")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert names(tmp_path / "a") == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "new"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), RuntimeError("bug")])
def test_file_survives_an_error_while_writing(failure, tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(type(failure)), replace_file(tmp_path / "b.txt") as temporary:
        temporary.write_text("half")
        raise failure
    assert names(tmp_path) == ["b.txt"]
    assert (tmp_path / "b.txt").read_text() == "old"


def test_file_survives_a_full_disk_at_the_flush(tmp_path, monkeypatch):
    (tmp_path / "b.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"), replace_file(tmp_path / "b.txt") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["b.txt"]
    assert (tmp_path / "b.txt").read_text() == "old"


def test_file_survives_a_kill_and_the_next_save_cleans_up(tmp_path):
    target = tmp_path / "b.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys, types\n"
        "for name in ('tf_robust_sparse', 'tf_robust_sparse.saving'):\n"  # without what they import
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [name.replace('.', '/')]\n"
        "from tf_robust_sparse.saving.atomic import replace_file\n"
        "with replace_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, target], cwd=ROOT, capture_output=True).returncode == -9
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2
    with replace_file(target) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["b.txt"]


def test_files_of_running_processes_and_other_names_are_left_alone(tmp_path, dead_process):
    kept = [f".b.txt.tmp-{os.getppid()}.txt", f".c.txt.tmp-{dead_process}.txt", "b.txt.tmp-1", ".b.txt.tmp-x"]
    for name in [*kept, f".b.txt.tmp-{dead_process}.txt", f".b.txt.tmp-{dead_process}"]:
        (tmp_path / name).write_text("")
    with replace_file(tmp_path / "b.txt") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == sorted([*kept, "b.txt"])


def test_file_in_place_of_a_directory_and_the_reverse(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(IsADirectoryError, match="there is a directory"), replace_file(tmp_path / "folder"):
        pass
    with pytest.raises(NotADirectoryError, match="there is a file"), replace_directory(tmp_path / "file"):
        pass


def write(folder, text):
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text(text)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_directory_is_replaced_as_a_whole(can_exchange, tmp_path, monkeypatch):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    for text in ("first", "second"):
        with replace_directory(tmp_path / "serve") as temporary:
            write(temporary, text)
            assert text == "first" or (tmp_path / "serve" / "sub" / "a.txt").read_text() == "first"
        assert names(tmp_path) == ["serve"]
        assert (tmp_path / "serve" / "sub" / "a.txt").read_text() == text


def test_directory_survives_an_error(tmp_path, monkeypatch):
    write(tmp_path / "serve", "old")
    with pytest.raises(RuntimeError), replace_directory(tmp_path / "serve") as temporary:
        write(temporary, "half")
        raise RuntimeError
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"), replace_directory(tmp_path / "serve") as temporary:
        write(temporary, "new")
    assert names(tmp_path) == ["serve"]
    assert (tmp_path / "serve" / "sub" / "a.txt").read_text() == "old"


def test_directory_killed_between_the_two_renames_comes_back(tmp_path, dead_process):
    write(tmp_path / f".serve.tmp-{dead_process}-old", "old")
    write(tmp_path / f".serve.tmp-{dead_process}", "new")
    with pytest.raises(RuntimeError), replace_directory(tmp_path / "serve"):
        raise RuntimeError
    assert names(tmp_path) == ["serve"]
    assert (tmp_path / "serve" / "sub" / "a.txt").read_text() == "old"


@pytest.mark.parametrize("replace", [replace_file, replace_directory])
def test_errors_name_what_was_to_be_written(replace, tmp_path):
    path = tmp_path / "results.json"
    for error in (OSError(errno.ENOSPC, "full"), "temporary"):
        with pytest.raises(OSError) as raised, replace(path) as temporary:
            raise OSError(errno.ENOSPC, "full", str(temporary / "part")) if error == "temporary" else error
        assert str(raised.value) == f"[Errno {errno.ENOSPC}] full: '{path}'"
    with pytest.raises(FileNotFoundError, match="other"), replace(path):
        (tmp_path / "other").read_text()


def test_a_file_that_grows_too_large_is_named(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match=f"too large: '{tmp_path / 'b.txt'}'"), replace_file(tmp_path / "b.txt") as path:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            path.write_bytes(bytes(5000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_what_cannot_be_written_is_found_out_before(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    for path in (tmp_path / "b.txt", tmp_path / "new" / "folder" / "c.txt"):
        check_replaceable(path)
    assert names(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "old"
    for path in ("/proc/trs/a.txt", "/proc/a.txt", tmp_path / ("a" * 300), tmp_path / ("a" * 300) / "a.txt"):
        with pytest.raises(OSError, match=f": '{path}'$"):
            check_replaceable(path)
    assert names(tmp_path) == ["b.txt"]
