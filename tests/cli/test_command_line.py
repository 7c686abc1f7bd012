"""Help, both ways to start a script, a quiet start, and the codes a script ends with."""

import os
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from tests.cli.conftest import EVALUATE, IMPORT, ROBUSTNESS, ROOT, TINY, TRAIN, run_script
from tf_robust_sparse import startup
from tf_robust_sparse.cli import command_line, main, number_flags, settings
from tf_robust_sparse.cli.sections.data import check_memory

SCRIPTS = (TRAIN, EVALUATE, IMPORT, ROBUSTNESS, "run_hydra")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("word", ["--help", "--helpshort", "--helpfull", "-h"])
def test_help_tells_every_flag_in_a_sentence(script, word):
    done = run_script(script, word).expect()
    assert done.err == ""
    assert done.out.startswith(("Trains", "Measures", "Turns", "Prunes"))
    shown = re.findall(r"^  --(?:\[no\])?(\w+) +(\S.*)", done.out, re.MULTILINE)
    assert len(shown) >= 15
    assert {"data", "model", "k" if script == "run_hydra" else "connectivity", "seed"} <= {name for name, _ in shown}
    assert max(map(len, done.out.splitlines())) <= 120
    assert ("--pc." in " ".join(done.out.split())) == (word == "--helpfull")
    assert word == "--helpfull" or len(done.out.splitlines()) <= 150
    assert "%s" not in done.out


@pytest.mark.parametrize(
    "script", ["run_certify", "run_sweep", "run_mask_plots", "run_unpack_imagenet", "run_verifier_export"]
)
def test_help_of_the_tools_tells_every_flag_in_a_sentence(script):
    done = run_script(script, "--help").expect()
    assert done.err == "" and done.out.startswith(("Certifies", "Runs", "Shows", "Copies", "Prepares"))
    shown = re.findall(r"^  --(?:\[no\])?(\w+) +(\S.*)", done.out, re.MULTILINE)
    assert len(shown) >= 3 and all(text for _, text in shown)
    assert max(map(len, done.out.splitlines())) <= 120


def test_help_shows_choices_ranges_defaults_and_other_names():
    text = " ".join(run_script(TRAIN, "--helpfull").out.split())
    assert "--connectivity Fraction of the kernel entries kept, 0.01 is 99 % sparse;" in text
    assert "of channels with --sparsifier=channel_magnitude. A number in (0, 1]." in text
    assert "One of freeze, reference. [freeze]" in text
    assert "Also --batch, -b. [128]" in text
    assert "Also --eps_iter. [2/255]" in text


STARTS = [[f"run_scripts/{script}.py"] for script in SCRIPTS] + [["-m", f"run_scripts.{script}"] for script in SCRIPTS]


@pytest.mark.full  # of one a file starts in test_runs.py, and the module below
@pytest.mark.parametrize("how", STARTS)
def test_scripts_start_as_files_and_as_modules_without_a_word_of_tensorflow(how):
    done = subprocess.run([sys.executable, *how, "--data=nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: --data=nothing: expected one of mnist, [^\n]*\n", done.stderr)


def test_only_noise_is_held_back():
    noise = (
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
        b"I0000 00:00:1795249422.793559   21208 port.cc:153] oneDNN custom operations are on.\n",
        b"W0000 00:00:1795249422.793559   21208 anything.cc:1] a warning\n",
    )
    assert all(startup._is_noise(line) for line in noise)
    for line in (b"F0000 00:00:17 1 cpu.cc:1] needs AVX\n", b"E0000 00:00:17 1 x.cc:1] broken\n", b"Traceback\n"):
        assert not startup._is_noise(line)


def test_what_is_no_noise_comes_out_after_the_start(capfd):
    with startup.without_noise():
        os.write(2, b"I0000 00:00:17 1 port.cc:153] oneDNN\nE0000 00:00:17 1 x.cc:1] broken\n")
        os.write(2, b"Traceback\n")
    assert capfd.readouterr().err == "E0000 00:00:17 1 x.cc:1] broken\nTraceback\n"


def test_shells_complete_commands_flags_and_choices(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trs", "completion", "bash"])
    main.main()
    shell = """_() { COMP_LINE=$1; COMP_POINT=${#1}; _trs; echo "${COMPREPLY[*]}"; }
    for line in "trs h" "trs plot " "trs hydra --tr" "trs hydra --norm=l" "trs lottery grid --da" "trs train --nod"; do
        _ "$line"
    done"""
    done = subprocess.run(["bash", "-c", capsys.readouterr().out + shell], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.splitlines() == [
        *(
            "hydra",
            "lottery masks vulnerability",
            "--train_examples= --trainer= --trades_start= --traceback",
            "linf l2",
        ),
        *("--datasets= --data_dirs=", "--nodecay_bias_and_bn"),
    ]
    monkeypatch.setattr(sys, "argv", ["trs", "completion", "fish"])
    with pytest.raises(SystemExit):
        main.main()
    assert "expected trs completion bash or zsh" in capsys.readouterr().err


def test_numbers_are_written_as_they_are_read():
    serialize = number_flags.Serializer().serialize
    for value, text in (
        (8 / 255, "8/255"),
        (0.1, "0.1"),
        (1e-6, "1e-06"),
        (0.0, "0.0"),
        (0.12345678901, "0.12345678901"),
    ):
        assert serialize(value) == text
        assert number_flags.Number(0, 1).parse(text) == value


@pytest.mark.slow
def test_interrupt_ends_with_130_and_what_to_do_without_a_word_of_tensorflow(tmp_path):
    command = [sys.executable, "-m", f"run_scripts.{TRAIN}", *TINY, "--objective=natural", "--epochs=2000"]
    process = subprocess.Popen(
        [*command, f"--output_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever is started in the background ignores the signal, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/last.weights.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err == "error: interrupted; no finished epoch is lost, run the same command with --resume to go on\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flip", "--augmentation=none"], "--flip needs an --augmentation that moves images"),
        (["--strategy=multi_worker"], "--strategy=multi_worker: expected TF_CONFIG as JSON"),
    ],
)
def test_what_would_mean_nothing_is_refused(words, message, parse, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{'cluster': 1}")
    parse(TRAIN, *words)
    with pytest.raises(command_line.BadFlag) as refused:
        settings.check()
    assert message in str(refused.value)


def test_images_that_do_not_fit_into_memory_are_refused():
    def images(count):
        shape = np.broadcast_to(np.zeros((), np.uint8), (count, 224, 224, 3))
        return types.SimpleNamespace(test_images=shape, test_labels=range(count))

    check_memory(images(4))
    with pytest.raises(command_line.BadFlag, match=r"--test_examples: expected .* such as \d+"):
        check_memory(images(10**8))


def test_a_damaged_image_is_one_line_and_skipped_files_are_said(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(12):
                pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}.png")
    broken = tmp_path / "images" / "train" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "images" / "train" / "cat" / "a.webp").write_bytes(b"")
    (tmp_path / "images" / "train" / ".ipynb_checkpoints").mkdir()
    arguments = (
        f"--data={tmp_path / 'images'}",
        "--image_size=32",
        "--model=small_cnn",
        "--epochs=1",
        "--batch_size=8",
    )
    done = run_script(TRAIN, *arguments, "--pgd_iters=1", f"--output_dir={tmp_path / 'run'}")
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert f"--image_size=32: {broken}: expected a complete .png image" in done.err
    assert "Note: " in done.out and "skipped 1 files of type .webp" in done.out and "1 hidden" in done.out


@pytest.mark.parametrize(
    "error, words", [(MemoryError("8 TiB"), "not enough memory"), (TypeError("a tuple"), "wrong type")]
)
def test_memory_that_runs_out_and_a_wrong_type_are_one_line(error, words, parse, capsys):
    def fail():
        raise error

    parse(TRAIN, "--notraceback")
    with pytest.raises(SystemExit) as ended:
        command_line._guarded(fail, "")
    line = capsys.readouterr().err
    assert ended.value.code == 1 and line.count("\n") == 1
    assert line.startswith("error: ") and words in line and str(error) in line


def test_memory_that_runs_out_over_an_input_names_its_flag(parse):
    parse(TRAIN, "--data=large.npz")
    with (
        pytest.raises(command_line.BadInput, match=r"^--data=large\.npz: not enough memory"),
        command_line.about("data"),
    ):
        raise MemoryError("8 TiB")


def test_flagfiles_are_found_beside_the_file_that_names_them(parse, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "size.flags").write_text("# of all runs\n--batch-size=7\n\n--flagfile=deeper.flags\n")
    (tmp_path / "base" / "deeper.flags").write_text("// further\n--seed=5\n")
    (tmp_path / "run.flags").write_text("--flagfile=base/size.flags\n--epochs=3\n")
    (tmp_path / "elsewhere" / "base").mkdir(parents=True)
    (tmp_path / "elsewhere" / "base" / "size.flags").write_text("--batch_size=9\n")
    monkeypatch.chdir(tmp_path / "elsewhere")  # where the same name means another file
    found = parse(TRAIN, "--data", "fashion_mnist_sample", "--flagfile", tmp_path / "run.flags", "--seed=6")
    assert (found.batch_size, found.epochs, found.seed) == (7, 3, 6)
    (tmp_path / "run.flags").write_text("--flagfile=../elsewhere/base/size.flags\n")
    monkeypatch.chdir(tmp_path / "base")  # from where the name is meant, as it always was
    assert parse(TRAIN, f"--flagfile={tmp_path / 'run.flags'}").batch_size == 9


def test_flagfiles_that_lead_nowhere(tmp_path):
    file = tmp_path / "run.flags"
    file.write_text("--flagfile=no.flags\n")
    done = run_script(TRAIN, f"--flagfile={file}").expect(2)
    assert "--flagfile=no.flags: expected a file of flags" in done.err and f"{file} names it" in done.err
    file.write_text(f"--flagfile={file}\n")
    assert "includes itself" in run_script(TRAIN, f"--flagfile={file}").expect(2).err
    file.write_bytes(b"\xff\xfe")
    assert "not text" in run_script(TRAIN, f"--flagfile={file}").expect(2).err
