"""Real signals, at writes and at random moments, until a run of every training script has ended all the same.

`python -m pytest -m drill`; a run is killed TRS_KILLS times, 9 unless set otherwise. The cheap drills in one process
stand beside the other tests of each script.
"""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli import binary_runs, hydra_runs, lottery_runs, test_neural_pruning
from tests.cli.conftest import ROOT, TINY, TRAIN, run_script
from tests.cli.test_runs import assert_same_weights
from tf_robust_sparse.saving.round_files import read_arrays, round_directory

KILLS = int(os.environ.get("TRS_KILLS", "9"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGING = {"seconds", "images_per_second", "versions", "training_seconds", "latency", "source", "init_from", "network"}
BINARY = (binary_runs.BINARY, *binary_runs.FEW, "--init=binary", "--epochs=2")
NEURAL = (test_neural_pruning.SCRIPT, *test_neural_pruning.TINY)
# name -> script and arguments, which --output_dir and --resume are added to
TRAINING = {
    "connectivity sampling": (TRAIN, *TINY, "-s", "--connectivity=0.1"),
    "hydra": (hydra_runs.HYDRA, *hydra_runs.ALL, "--save_dense"),
    "binary": (*BINARY, "--trainer=adv_step", "--pr_steps=2"),
    "binary fast": (*BINARY, "--trainer=adv_step_fast", "--pr_steps=2"),
    "neural base": NEURAL,
    "neural gated": (*NEURAL, "--mode=bbd", "--adv_train", "--beta_weight=4", "--init_from=BASE"),
}
pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]


def kill_until_it_ends(command, seed):
    """Runs a script again and again, ends it by each signal at a write or at a moment, and then lets it end."""
    random_ = random.Random(seed)
    words = words_of(command)
    ends = []
    for kill in range(KILLS):
        sent = SIGNALS[kill % 3]
        if kill % 2:
            process = start([*words])
            try:
                process.wait(random_.uniform(3, 30))
            except subprocess.TimeoutExpired:
                process.send_signal(sent)
            ends.append((sent, process.wait()))
        else:
            process = start(["-m", "tests.cli.drill", str(random_.randint(2, 9)), str(int(sent)), *words])
            ends.append((sent, process.wait()))
        assert ends[-1][1] in (0, -int(sent), 130), ends
    assert sum(code != 0 for _, code in ends) > 1, ends
    process = start(words)
    assert process.wait() == 0, ends


def words_of(command):
    script, *arguments = command
    return [str(ROOT / "run_scripts" / f"{script}.py"), *map(str, arguments)]


def start(words):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        # Whoever is started in the background ignores the signal, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def lasting(content):
    """What does not change from run to run."""
    if isinstance(content, dict):
        return {name: lasting(value) for name, value in content.items() if name not in CHANGING}
    return [lasting(each) for each in content] if isinstance(content, list) else content


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, tmp_path):
    script, *arguments = TRAINING[name]
    if "--init_from=BASE" in arguments:
        run_script(*NEURAL, f"--output_dir={tmp_path / 'base'}").expect()
        arguments = [word.replace("BASE", str(tmp_path / "base")) for word in arguments]
    run_script(script, *arguments, f"--output_dir={tmp_path / 'whole'}").expect()
    kill_until_it_ends((script, *arguments, f"--output_dir={tmp_path / 'killed'}", "--resume"), name)
    files = {
        directory: {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
        for directory in (tmp_path / "whole", tmp_path / "killed")
    }
    assert files[tmp_path / "whole"] == {path for path in files[tmp_path / "killed"] if ".tmp-" not in str(path)}
    for record in sorted(path for path in files[tmp_path / "whole"] if path.name == "results.json"):
        one, other = (directory / record for directory in files)
        assert lasting(json.loads(one.read_text())) == lasting(json.loads(other.read_text()))
        assert_same_weights(one.parent, other.parent)


def test_lottery_tickets(tmp_path):
    command = (lottery_runs.RUN, *lottery_runs.TINY, "--trials=2", "--adv_train", "--checkpoint_seconds=0")
    run_script(*command, f"--base_dir={tmp_path / 'whole'}").expect()
    kill_until_it_ends((*command, f"--base_dir={tmp_path / 'killed'}", "--resume"), "lottery")
    for trial in (0, 1):
        for number in range(3):
            one, other = (
                round_directory(tmp_path / name / lottery_runs.NAME, trial, number) for name in ("whole", "killed")
            )
            for kind in ("init_kernels", "post_kernels", "masks", "next_masks"):
                first, again = read_arrays(one / kind), read_arrays(other / kind)
                assert all(np.array_equal(first[name], again[name]) for name in first)
            assert (one / "test.csv").read_text() == (other / "test.csv").read_text()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    directory = tmp_path_factory.mktemp("network")
    trs.save_network(trs.models.small_cnn(10, (28, 28, 1), kernel="subnet", connectivity=0.5, seed=0), directory)
    return directory


@pytest.mark.parametrize("more", [("--sigma=0.2", "--n0=20", "--n=1000"), ("--method=crown-ibp", "--epsilon=1/255")])
def test_tables_of_certificates(more, network, tmp_path):
    few = ("--data=fashion_mnist_sample", "--test_examples=40", "--batch_size=8", *more)
    command = ("run_certify", *few, f"--saved_model_or_network={network}")
    # Answers near a tie may depend on how many devices the process sees, so this is a process of its own too.
    assert start(words_of((*command, f"--results_file={tmp_path / 'whole.json'}"))).wait() == 0
    kill_until_it_ends((*command, f"--results_file={tmp_path / 'killed.json'}"), "certify")
    one, other = (
        [line.split("\t")[:-1] for line in (tmp_path / f"{name}.tsv").read_text().splitlines()[1:]]
        for name in ("whole", "killed")
    )
    assert one == other


def test_the_state_of_autoattack(network, tmp_path):
    few = ("--data=fashion_mnist_sample", "--test_examples=64", "--batch_size=16", "--epsilon=0.02")
    command = ("run_robustness_eval", *few, f"--network={network}", "--attacks=autoattack")
    # Answers near a tie may depend on how many devices the process sees, so this is a process of its own too.
    assert start(words_of((*command, f"--results_file={tmp_path / 'whole.json'}"))).wait() == 0
    files = (f"--results_file={tmp_path / 'killed.json'}", f"--state_file={tmp_path / 'state.json'}")
    kill_until_it_ends((*command, *files), "state")
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert one["robust_accuracy"] == other["robust_accuracy"]
