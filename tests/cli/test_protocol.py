"""A protocol trains, evaluates and measures every method once, goes on, and makes one table."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained
from tf_robust_sparse.cli import many_runs, protocol_table
from tf_robust_sparse.cli.commands import protocol as module

PROTOCOL = "run_protocol"
SHIPPED = ("sample", "cifar10_narrow", "pruning_benchmark")
STUB = """
import json, os, pathlib, shutil, sys
source, file, script, *words = sys.argv[1:]
flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
with open(file, "a") as ran:
    print(json.dumps([script, os.environ.get("CUDA_VISIBLE_DEVICES"), *words]), file=ran)
if flags.get("seed") == "7":
    sys.exit("error: out of luck")
if "network" in flags:
    attacks = {"pgd": {"robust_accuracy": 0.5}, "autoattack": {"robust_accuracy": 0.25}}
    found = {"clean_accuracy": 0.75, "robust_accuracy": 0.25, "images": 4, "flags": ["It is odd."], "attacks": attacks}
    pathlib.Path(flags["results_file"]).write_text(json.dumps(found))
else:
    shutil.copytree(source, flags["output_dir"])
"""
FILE = """
about = "A few networks"
connectivity = ["0.5", 0.1]
seeds = [0, 1]
evaluate = ["--data=fashion_mnist_sample", "--attacks=clean,pgd"]
[shared]
first = "hydra --flagfile=hydra_sample_adv.flags --exp_mode=pretrain"
[[method]]
name = "Rig L"
command = "train --flagfile=base/quickstart.flags --sparsifier=rigl --connectivity={connectivity}"
[[method]]
name = "HYDRA"
connectivity = ["0.1"]
cost = "an hour"
command = "hydra --flagfile=hydra_sample_adv.flags --source_net={first} --k={connectivity}"
"""


@pytest.fixture
def trained(monkeypatch, tmp_path, finished):
    """Lets runs copy a finished one; returns a function that lists what was called."""
    ran = tmp_path / "ran"
    start = [sys.executable, "-S", "-c", STUB, str(finished), str(ran)]
    monkeypatch.setattr(protocol_table, "TIMED_FOR", 0.01)
    for place in (many_runs, module):
        monkeypatch.setattr(place, "process", lambda script, *words: [*start, script, *words])
    return lambda: [json.loads(line) for line in ran.read_text().splitlines()]


def test_everything_is_done_once_and_put_into_one_table(trained, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(FILE)
    to = (f"--protocol={file}", f"--output_dir={tmp_path / 'out'}")
    plan = run_script(PROTOCOL, *to, "--plan").expect().out
    assert plan.count("\ntrs eval ") == 6 and "# HYDRA, connectivity 0.1, seed 0; an hour" in plan
    done = run_script(PROTOCOL, *to, "--only=Rig L", "--gpus=3").expect()
    assert [words[0] for words in trained()] == ["run_connectivity_sampling", "eval"] * 4
    assert {words[1] for words in trained()} == {"3"}
    run_script(PROTOCOL, *to).expect()
    assert [words[0] for words in trained()[8:]] == ["run_hydra"] * 2 + ["run_hydra", "eval"] * 2
    assert f"--source_net={tmp_path / 'out/shared/first/seed_0'}" in trained()[10]
    (tmp_path / "out/Rig_L/0.1/seed_0/robustness.json").unlink()  # interrupted between the two
    done = run_script(PROTOCOL, *to).expect()
    assert [words[0] for words in trained()[14:]] == ["eval"]
    run_script(PROTOCOL, *to).expect()
    assert len(trained()) == 15
    record = json.loads((tmp_path / "out/protocol.json").read_text())
    assert [point["method"] for point in record["points"]] == ["Rig L", "Rig L", "HYDRA"]
    (one, two) = record["points"][0]["runs"]
    assert record["points"][2]["training_flops"] == 2 * one["training_flops"] > 0  # and of what it begins with
    assert one["bytes"] == two["bytes"] > 1000 and one["milliseconds"] > 0 and one["multiply_adds"] > 1000
    assert "| HYDRA | " in done.out and "| 75.00 ± 0.00 | 50.00 ± 0.00 | 25.00 ± 0.00 |" in done.out
    assert f"- HYDRA, {100 * record['points'][2]['connectivity']:.3g} %, seed 1: It is odd.\n" in done.out
    assert (tmp_path / "out/protocol.md").read_text().strip() in done.out
    assert (tmp_path / "out/protocol.png").exists() and (tmp_path / "out/protocol.pdf").exists()
    # Rows made elsewhere join those made here; of the same seed, those made here count.
    elsewhere = tmp_path / "protocol.json"
    more, also = FILE.replace("[0, 1]", "[1, 2]"), f"--also={elsewhere}"
    file.write_text(more)
    there, now = f"--output_dir={tmp_path / 'there'}", record["points"][2]["seconds"]
    record["points"][2]["runs"][0]["seconds"] = before = now + 1
    record["points"][2]["runs"][1]["seconds"] = now + 2
    elsewhere.write_text(json.dumps(record))
    run_script(PROTOCOL, f"--protocol={file}", there, also, "--only=HYDRA", "--connectivities=0.1").expect()
    (one, two, three) = json.loads((tmp_path / "there/protocol.json").read_text())["points"]
    assert [each["seed"] for each in one["runs"]] == [0, 1, 2] and [len(two["runs"]), len(three["runs"])] == [2, 2]
    assert [each["seconds"] for each in one["runs"]] == [before, *[now] * 2]
    refused = run_script(PROTOCOL, f"--protocol={file}", there, f"--also={file}")
    assert_explained(refused, f"--also={file}: expected the protocol.json of a protocol")
    file.write_text(FILE.replace("--sparsifier=rigl", "--sparsifier=set"))
    assert_explained(run_script(PROTOCOL, *to, also), f"{also} has results of another Rig L", "leave the file out")
    other = tmp_path / "other.json"
    other.write_text(elsewhere.read_text().replace("--sparsifier=rigl", "--sparsifier=set"))
    two = run_script(PROTOCOL, *to, "--only=HYDRA", f"--also={elsewhere},{other}")
    assert_explained(two, f"--also={other} has results of another Rig L")
    assert_explained(run_script(PROTOCOL, *to), "--output_dir=", "results of another Rig L", "--sparsifier=rigl")
    file.write_text(FILE.replace("[0, 1]", "[0, 7]"))
    shutil.rmtree(tmp_path / "out/HYDRA")
    done = run_script(PROTOCOL, *to).expect(1)
    assert "seed 7: exit code 1" in done.err and "the others are kept" in done.err and "| HYDRA | " in done.out


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_can_be_trained(name, trained, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(many_runs, "train", lambda runs, *_: checked.extend(runs) or [])
    monkeypatch.setattr(module, "show", lambda *_: None)
    for shared in ("hydra_dense", "neural_base"):  # so that those who begin with them are checked
        (tmp_path / "out/shared" / shared / "seed_0").mkdir(parents=True)
    to = (f"--protocol={name}", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}")
    run_script(PROTOCOL, *to).expect()
    assert len(checked) >= 18


def test_training_flops():
    results = {"objective": {"objective": "AT", "attack": {"num_steps": 10}}, "epochs": 2, "data": {"train": 100}}
    assert protocol_table.training_flops(results, 1000) == 2 * 1000 * 23 * 200
    for both in ("TRADES", "CleanAndAdversarial"):
        results["objective"]["objective"] = both
        assert protocol_table.training_flops(results, 1000) == 2 * 1000 * 26 * 200
    results["objective"] = {"objective": "VulnerabilitySuppression", "suppressed": results["objective"]}
    assert protocol_table.training_flops(results, 1000) == 2 * 1000 * 26 * 200


def test_a_run_begins_with_what_its_flags_name(tmp_path):
    words = ("--k=0.1", "--source_net=one", "--init_from=two")
    assert many_runs.Run("run_hydra", "0.1", 0, "a", tmp_path, words).sources() == [Path("one"), Path("two")]


def test_bad_input(trained, tmp_path):
    file = tmp_path / "a.toml"

    def refused(*words, old="", new="", more=(), protocol=file):
        file.write_text(FILE.replace(old, new, 1) if old else FILE)
        done = run_script(PROTOCOL, f"--protocol={protocol}", f"--output_dir={tmp_path / 'out'}", *more)
        assert_explained(done, *words)
        assert not (tmp_path / "out").exists()

    refused(
        "--protocol=nothing", "a TOML file, or one of cifar10_narrow, pruning_benchmark, sample", protocol="nothing"
    )
    refused("--protocol=", "Expected '='", old="[shared]", new="shared]")
    refused("--protocol=", "seeds is missing", old="seeds", new="# seeds")
    refused("--protocol=", "speed is unknown", old="seeds", new="speed = 1\nseeds")
    refused("--protocol=", "different names", old="HYDRA", new="Rig_L")
    refused("--only=Rig", "some of Rig L, HYDRA", more=("--only=Rig",))
    refused("--connectivities=0.2: expected some of 0.5, 0.1", more=("--connectivities=0.2",))
    refused("Rig L: expected a command with {connectivity}, {seed}, {first}", old="{connectivity}", new="{density}")
    refused("begins with train, hydra", old='"train', new='"eval')
    refused("--gpus", "leave out --processes", more=("--gpus=0", "--processes=2"))
    refused("Rig L, connectivity 0.5, seed 0", "--sparsifier=rigel", old="=rigl", new="=rigel")
    refused("evaluation of Rig L", "--attacks=clean,pdg", old="clean,pgd", new="clean,pdg")
    refused("evaluate: expected flags with {directory}", old="clean,pgd", new="{attack}")
