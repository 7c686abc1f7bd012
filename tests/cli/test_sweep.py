"""A sweep runs each value and seed once, goes on, and puts means into a table and a figure."""

import json
import sys

import numpy as np
import pytest

from tests.cli.conftest import TINY, TRAIN, run_script
from tests.cli.test_bad_input import assert_explained
from tf_robust_sparse.cli import many_runs
from tf_robust_sparse.cli.commands import sweep as module

SWEEP = "run_sweep"
COMMAND = f"{TRAIN} --sparse_train {' '.join(TINY)}"
STUB = """
import json, os, pathlib, sys
file, *words = sys.argv[1:]
flags = dict(word[2:].split("=", 1) for word in words if "=" in word)
place = pathlib.Path(flags["output_dir"])
place.mkdir(parents=True, exist_ok=True)
with open(file, "a") as ran:
    print(json.dumps([*words, os.environ.get("TF_NUM_INTRAOP_THREADS")]), file=ran)
print("trained")
if flags["seed"] == "7" and "--resume" not in words:
    sys.exit("error: out of luck")
if flags["seed"] == "8":
    sys.exit(130)
clean = 0.9 - 0.01 * int(flags["seed"]) ** 2
found = {"clean_accuracy": clean, "robust_accuracy": clean / 2, "connectivity": 0.1}
(place / "results.json").write_text(json.dumps(found))
"""


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Lets runs leave results without training; returns a function that lists their command lines, with the threads."""
    ran = tmp_path / "ran"
    monkeypatch.setattr(
        many_runs, "process", lambda script, *words: [sys.executable, "-S", "-c", STUB, str(ran), *words]
    )
    return lambda: [json.loads(line) for line in ran.read_text().splitlines()]


def test_values_and_seeds(trained, tmp_path):
    sweep = (f"--command={COMMAND}", "--vary=connectivity", f"--output_dir={tmp_path / 's'}")
    run_script(SWEEP, *sweep, "--values=0.5,0.1", "--seeds=0,1,2").expect()
    record = json.loads((tmp_path / "s/sweep.json").read_text())
    assert [point["value"] for point in record["points"]] == [0.5, 0.1]
    for point in record["points"]:
        assert [run["seed"] for run in point["runs"]] == [0, 1, 2]
        assert point["clean_accuracy"] == pytest.approx((0.9 + 0.89 + 0.86) / 3)
        assert point["clean_deviation"] == pytest.approx(np.std([0.9, 0.89, 0.86], ddof=1))
        assert point["robust_deviation"] == pytest.approx(np.std([0.45, 0.445, 0.43], ddof=1))
    # Finished runs are not run again, and the table takes in another sweep.
    assert len(trained()) == 6
    done = run_script(SWEEP, *sweep, "--values=0.5", "--name=again", f"--beside={tmp_path / 's'}").expect()
    assert len(trained()) == 6
    assert "| 0.5 | again |" in done.out and f"| 0.1 | {TRAIN} |" in done.out
    assert (tmp_path / "s/sweep.md").read_text().strip() in done.out


@pytest.mark.full
@pytest.mark.slow
def test_a_value_is_trained_by_the_script(tmp_path):
    sweep = (f"--command={COMMAND} --epochs=1", "--vary=connectivity", f"--output_dir={tmp_path / 's'}")
    run_script(SWEEP, *sweep, "--values=0.1", "--seeds=1").expect()
    (point,) = json.loads((tmp_path / "s/sweep.json").read_text())["points"]
    assert point["connectivity"] == pytest.approx(0.1, abs=1e-3)
    for kind in ("clean", "robust"):
        assert point[f"{kind}_accuracy"] == point["runs"][0][f"{kind}_accuracy"]
    flags = (tmp_path / "s/connectivity_0.1/seed_1/run.flags").read_text()
    assert "--connectivity=0.1\n" in flags and "--seed=1\n" in flags
    assert (tmp_path / "s/sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "s/sweep.pdf").read_bytes()[:5] == b"%PDF-"


def test_side_by_side(trained, tmp_path):
    place = tmp_path / "s"
    sweep = (f"--command={COMMAND}", "--vary=connectivity", f"--output_dir={place}", "--processes=2")
    done = run_script(SWEEP, *sweep, "--values=0.5,0.1", "--seeds=0,7").expect(1)
    assert f"connectivity=0.1, seed 0 begins, its output is in {place / 'connectivity_0.1/seed_0.log'}" in done.out
    assert "connectivity=0.1, seed 0 is finished" in done.out and (place / "sweep.md").read_text().strip() in done.out
    assert_explained(done, "2 of 4 runs failed, connectivity=0.5, seed 7: error: out of luck; connectivity=0.1, seed 7")
    assert [point["clean_accuracy"] for point in json.loads((place / "sweep.json").read_text())["points"]] == [0.9, 0.9]
    run_script(SWEEP, *sweep, "--values=0.5,0.1", "--seeds=0,7").expect()  # goes on with those that failed
    assert [words[-2:] for words in trained()[4:]] == [["--resume", "1"]] * 2
    assert (place / "connectivity_0.1/seed_7.log").read_text() == "trained\nerror: out of luck\ntrained\n"
    done = run_script(SWEEP, *sweep, "--values=0.9", "--seeds=8,1").expect(130)
    assert "the same command goes on" in done.err


def test_fractions(trained, tmp_path):
    sweep = ("--vary=epsilon", "--values=2/255,0.1", f"--command={COMMAND.replace('--epsilon=0.05', '')}")
    run_script(SWEEP, *sweep, f"--output_dir={tmp_path}").expect()
    assert [word for command in trained() for word in command if "--epsilon" in str(word)] == [
        "--epsilon=2/255",
        "--epsilon=0.1",
    ]
    assert [point["value"] for point in json.loads((tmp_path / "sweep.json").read_text())["points"]] == [2 / 255, 0.1]
    assert (tmp_path / "epsilon_2-255/seed_0/results.json").is_file()


def test_sweeps_of_one_name_are_told_apart(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "draw_sweep", lambda series, *_: drawn.append(list(series)))
    sweep = ("--vary=connectivity", "--values=0.1", f"--command={COMMAND}", "--name=DEEP R")
    for folder in ("a", "b/a"):
        run_script(SWEEP, *sweep, f"--output_dir={tmp_path / folder}").expect()
    beside = f"--beside={tmp_path / 'a'},{tmp_path / 'b/a'}"
    done = run_script(SWEEP, *sweep, beside, f"--output_dir={tmp_path / 'c'}").expect()
    assert drawn[-1] == ["DEEP R", "DEEP R (a)", "DEEP R (a, 2)"]
    assert all(f"| {name} |" in done.out for name in drawn[-1])
    assert json.loads((tmp_path / "c/sweep.json").read_text())["name"] == "DEEP R"


def test_runs_of_another_command_are_not_taken_over(tmp_path):
    place = tmp_path / "s"
    place.mkdir()
    begun = {"name": "a", "command": "run_hydra --k=1", "vary": "connectivity", "points": []}  # and interrupted
    (place / "sweep.json").write_text(json.dumps(begun))
    sweep = ("--vary=connectivity", "--values=0.1", f"--command={COMMAND}")
    assert_explained(run_script(SWEEP, *sweep, f"--output_dir={place}"), "--output_dir", "run_hydra --k=1")
    done = run_script(SWEEP, *sweep, f"--output_dir={tmp_path / 'other'}", f"--beside={place}")
    assert_explained(done, "a finished sweep", "interrupted")
    assert not (tmp_path / "other").exists()


def test_bad_input(tmp_path):
    whole = {"command": COMMAND, "vary": "connectivity", "values": "0.1", "output_dir": str(tmp_path / "s")}

    def refused(*words, **changes):
        done = run_script(SWEEP, *[f"--{name}={value}" for name, value in {**whole, **changes}.items() if value])
        assert_explained(done, *words)
        assert not (tmp_path / "s").exists()

    refused("--command", "run_hydra", command="")
    refused("--command", "run_connectivity_sampling or", command="run_foolbox_eval --data=mnist")
    refused("--command", "the sweep sets --connectivity itself", command=f"{COMMAND} --connectivity=0.3")
    refused("--command", "the sweep sets --output_dir itself", command=f"{COMMAND} --output-dir=x")
    refused("--values", "different numbers", values="")
    refused("--values", "different numbers", values="0.1,0.1")
    refused("--values", "different numbers", values="low")
    refused("--values", "different numbers", values="2/255,4/510")
    refused("connectivity=1.5, seed 0: --connectivity=1.5", "in (0, 1]", values="0.5,1.5")
    refused("connectivity=0.1, seed 0: --save_every=0", command=f"{COMMAND} --select=last --save_every=0")
    refused("--values", "different numbers", values="2/x")
    refused("--vary=seed", "--seeds=0,1,2", vary="seed", values="1,2")
    refused("--vary=output_dir", "a directory for every run", vary="output_dir", values="1,2")
    refused("--vary=conectivity", "a flag that run_connectivity_sampling --help lists", vary="conectivity")
    refused("--command", "the sweep sets -pc itself", command=f"{COMMAND} -pc 0.3")
    refused("--command", "the sweep sets --k=0.3 itself", command="run_hydra --k=0.3", vary="pc")
    refused("--command: --trainer=free", command="run_hydra --trainer=free", vary="k")
    refused("--command: unexpected arguments: base", command="run_hydra base", vary="k")
    refused("seed -1: --seed=-1", seeds="0,-1")
    refused("k=0.1, seed 0: --exp_mode=prune", command="run_hydra --exp_mode=prune", vary="k")
    refused("--seeds", "different numbers", seeds="0,0")
    refused("--output_dir", "a directory for the sweep", output_dir="")
    refused("a finished sweep", beside=str(tmp_path))
