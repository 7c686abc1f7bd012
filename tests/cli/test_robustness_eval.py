"""The robustness evaluation from end to end on a few images, and its bad input."""

import functools
import importlib.util
import json

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import ROBUSTNESS, ROOT, TRAIN, run_script
from tests.cli.drill import survive
from tests.cli.test_bad_input import assert_explained
from tests.networks import fit_last_layer
from tf_robust_sparse.attacks import Square
from tf_robust_sparse.cli import settings
from tf_robust_sparse.cli.sections.leaderboard import connectivity
from tf_robust_sparse.evaluation import attack_versions

# A natural network falls to every attack within a few steps, so that all of them are quick.
NATURAL = (
    *("--data=fashion_mnist_sample", "--model=small_cnn", "--objective=natural", "--sparse_train"),
    "--connectivity=0.3",
)
IMAGES = ("--data=fashion_mnist_sample", "--test_examples=16", "--batch_size=16")
FEW = (*IMAGES, "--epsilon=0.1")
QUICK = (*IMAGES, "--epsilon=0.3")
# The first and the last attack of the standard version of AutoAttack, all of which tests/evaluation runs.
SHORT_VERSION = ("apgd-ce", "square")


@pytest.fixture(scope="module")
def natural(tmp_path_factory):
    """The directory of a network without adversarial training, which the flags of its run name; not to be changed."""
    network = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="subnet", connectivity=0.3, seed=0)
    fit_last_layer(network, trs.data.load("fashion_mnist_sample").take(4000, 1))
    place = tmp_path_factory.mktemp("natural")
    directory = place / "saved_models" / "fashion_mnist_sample_small_cnn_natural_sparse0.3"
    trs.save_network(network, directory)
    trs.export_network(network, directory / "serve")
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network of plain Keras layers, the nearest mean of a class, in which half of the kernel entries are zero.

    Its file, beside which stands its export.
    """
    images = trs.data.load("fashion_mnist_sample")
    x = images.train_images.reshape(-1, 784) / np.float32(255)
    means = np.stack([x[images.train_labels == label].mean(0) for label in range(10)], 1)
    means += 1e-3  # none of them is zero but for this
    means[::2] = 0
    network = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    network.layers[-1].set_weights([means, -(means**2).sum(0) / 2])
    path = tmp_path_factory.mktemp("plain") / "network.keras"
    network.save(path)
    trs.export_network(network, path.with_name("serve"))
    return path


@pytest.fixture(scope="module")
def everything(plain, tmp_path_factory):
    """What an evaluation with every attack printed and wrote."""
    folder = tmp_path_factory.mktemp("everything")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(attack_versions.VERSIONS, "standard", SHORT_VERSION)
        done = run_script(
            ROBUSTNESS,
            *(*QUICK, f"--network={plain}", f"--transfer_from={plain.with_name('serve')}"),
            *("--attacks=clean,fgsm,pgd,autoattack,square,transfer,corruptions,fmn,hofmn", "--min_norm_steps=20"),
            *("--pgd_iters=10", "--pgd_restarts=2"),
            *("--epsilons=0.3,0.01", "--foolbox_check", "--title=A network", "--model=small_cnn"),
            *(f"--results_file={folder / 'r.json'}", f"--save_adversarials={folder / 'a.npz'}"),
            *(f"--report={folder / 'page.md'}", f"--robustbench_file={folder / 'row.json'}"),
            *(f"--state_file={folder / 'state.json'}", f"--log_file={folder / 'log.txt'}"),
        )
    return done.expect(), folder


@pytest.fixture
def results(everything):
    return json.loads((everything[1] / "r.json").read_text())


def test_accuracies_are_in_order(results):
    attacks = results["attacks"]
    assert list(attacks) == ["fgsm", "pgd", "autoattack", "square", "transfer", "fmn", "hofmn"]
    alone = [results["clean_accuracy"], *(attacks[name]["robust_accuracy"] for name in ("fgsm", "pgd", "autoattack"))]
    assert alone == sorted(alone, reverse=True) and alone[0] > 0.5 > alone[-1]
    worst = [each["worst_case_accuracy"] for each in attacks.values()]
    assert worst == sorted(worst, reverse=True) and results["robust_accuracy"] == worst[-1]
    assert all(each["worst_case_accuracy"] <= each["robust_accuracy"] for each in attacks.values())
    assert list(attacks["autoattack"]["attacks"]) == ["apgd-ce", "square"]


def test_results_hold_what_a_reader_needs(results):
    assert (results["images"], results["norm"], results["epsilon"]) == (16, "Linf", 0.3)
    assert "unfinished" not in results
    assert results["data"]["name"] == "fashion_mnist_sample" and results["network"].endswith("network.keras")
    assert {"python", "tensorflow", "keras", "tf_robust_sparse"} <= set(results["versions"])
    for name, each in results["attacks"].items():
        assert each["seconds"] > 0 and each["iterations_per_image"] >= 0
        black_box = name in ("square", "transfer")
        assert (each["gradient_passes_per_image"] == 0) == black_box
    assert results["attacks"]["pgd"]["num_steps"] == 10 and results["attacks"]["pgd"]["restarts"] == 2
    assert results["attacks"]["square"]["num_queries"] == 5000
    fmn = results["attacks"]["fmn"]
    assert (fmn["num_steps"], len(fmn["distances"])) == (20, 16) and 0 < fmn["median_distance"] < 0.3
    assert {*results["attacks"]["hofmn"]["parameters"]} == {"lr", "momentum", "weight_decay", "dampening"}
    assert results["attacks"]["transfer"]["source_fooled"] > 0.5
    assert 0 < results["corruptions"]["mean_corruption_accuracy"] <= 1
    assert [point["epsilon"] for point in results["security_curve"]["points"]] == [0, 0.01, 0.3]
    curve = [point["robust_accuracy"] for point in results["security_curve"]["points"]]
    assert curve == sorted(curve, reverse=True) and curve[0] == results["clean_accuracy"]
    assert all(flag.endswith(".") for flag in results["flags"])
    assert len(results["flags"]) == len(results["flag_names"])


def test_transfer_from_the_network_itself_is_the_white_box_attack(results):
    attacks = results["attacks"]
    assert attacks["transfer"]["robust_accuracy"] == attacks["pgd"]["robust_accuracy"]


def test_foolbox_agrees_on_a_network_that_falls(results):
    found = results["foolbox_check"]
    assert found["pgd"]["disagreements"] <= 1
    indices = found["pgd"]["broken_by_foolbox_only"] + found["pgd"]["broken_by_ours_only"]
    assert len(indices) == found["pgd"]["disagreements"] and set(indices) <= set(range(16))
    assert found["deepfool"]["robust_accuracy"] < results["clean_accuracy"]


def test_examples_fool_the_network_inside_the_ball(everything, results, plain):
    with np.load(everything[1] / "a.npz") as found:
        x_adv, y, y_adv, broken_by = (found[name] for name in ("x_adv", "y", "y_adv", "broken_by"))
        assert list(found["attacks"]) == list(results["attacks"]["autoattack"]["attacks"])
    x = trs.data.load("fashion_mnist_sample").test_images[:16]
    x = x / 255 if x.dtype == np.uint8 else x
    assert np.abs(x_adv - x).max() <= 0.3 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    answers = keras.saving.load_model(plain)(x_adv, training=False).numpy().argmax(-1)
    np.testing.assert_array_equal(answers, y_adv)
    np.testing.assert_array_equal(answers == y, broken_by == -1)


def test_the_page_has_tables_and_figures(everything, results):
    text = (everything[1] / "page.md").read_text()
    assert text.startswith("# Robustness of A network\n")
    assert f"| pgd | {100 * results['attacks']['pgd']['robust_accuracy']:.2f} % |" in text
    for figure in ("page_curve.png", "page_examples.png"):
        assert f"({figure})" in text
        assert (everything[1] / figure).read_bytes().startswith(b"\x89PNG")
    for heading in ("Reasons for doubt", "Accuracy by radius", "Common corruptions", "Foolbox", "Adversarial examples"):
        assert f"## {heading}" in text


def test_leaderboard_rows(everything, results, natural):
    row = json.loads((everything[1] / "row.json").read_text())
    assert row["autoattack_acc"] == f"{100 * results['attacks']['autoattack']['robust_accuracy']:.2f}"
    assert (row["name"], row["architecture"], row["dataset"]) == ("A network", "small_cnn", "fashion_mnist_sample")
    pruning = json.loads((everything[1] / "row.pruning_benchmark.json").read_text())
    assert pruning["model_key"]["sparsity_rate"] == "50" and pruning["epsilon"] == "0.3"
    assert connectivity(trs.load_network(natural), None) == pytest.approx(0.3, abs=1e-3)


def test_the_summary_names_every_attack_and_file(everything, results):
    done, folder = everything
    for name, each in results["attacks"].items():
        assert f"\n{name:19} {100 * each['robust_accuracy']:6.2f} %" in done.out
    assert f"\nWorst case          {100 * results['robust_accuracy']:6.2f} %" in done.out
    for file in ("r.json", "a.npz", "page.md", "row.json", "state.json", "log.txt"):
        assert (folder / file).is_file()
    assert all(warning in done.out for warning in results["flags"])


def test_a_run_is_found_by_its_flags(natural, monkeypatch):
    monkeypatch.chdir(natural.parents[1])
    run_script(ROBUSTNESS, *NATURAL, "--test_examples=16", "--norm=L2", "--attacks=clean,fgsm").expect()
    found = json.loads((natural / "robustness.json").read_text())
    assert (found["norm"], found["epsilon"], list(found["attacks"])) == ("L2", 0.5, ["fgsm"])


def test_the_flagfile_of_the_quick_start(parse):
    trained = parse(TRAIN, "--flagfile=flags/quickstart.flags")
    directory, data, epsilon = trained.output_dir, trained.data, trained.epsilon
    flags = parse(ROBUSTNESS, "--flagfile=flags/quickstart_robustness.flags")
    assert (flags.saved_model, flags.data, flags.epsilon) == (f"{directory}/serve", data, epsilon)
    assert flags.attacks == ["clean", "fgsm", "pgd", "autoattack"] and flags.test_examples == 200
    assert "run_robustness_eval.py --flagfile=flags/quickstart_robustness.flags" in (ROOT / "Makefile").read_text()


def test_a_flag_of_a_curve_and_of_a_report(parse):
    curve = ("--epsilons=2/255, 4/255,0.5", "--pgd_iters=5", "--nofoolbox_check")
    flags = parse(ROBUSTNESS, "--attacks=clean", *curve, "--title=T", "--report=page.md")
    settings.check()
    assert flags.epsilons == [2 / 255, 4 / 255, 0.5] and flags.epsilon == 8 / 255
    assert flags["epsilons"].serialize() == "--epsilons=2/255,4/255,0.5"


def test_a_killed_run_goes_on_from_its_state_file(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(attack_versions.VERSIONS, "standard", SHORT_VERSION)
    monkeypatch.setattr(attack_versions, "Square", functools.partial(Square, num_queries=500))
    given = (ROBUSTNESS, *IMAGES, f"--network={plain}", "--attacks=autoattack", "--epsilon=0.01")
    run_script(*given, f"--results_file={tmp_path / 'r.json'}").expect()
    files = (f"--state_file={tmp_path / 'state.json'}", f"--results_file={tmp_path / 'again.json'}")
    done = survive(lambda: run_script(*given, *files), [("state.json", 2)])
    assert "restored after" in done.out
    expected, found = (
        json.loads((tmp_path / name).read_text())["attacks"]["autoattack"] for name in ("r.json", "again.json")
    )
    assert 0 < found["robust_accuracy"] == expected["robust_accuracy"] < 1
    for name, each in expected["attacks"].items():
        assert found["attacks"][name]["robust_accuracy"] == each["robust_accuracy"]


def test_what_is_unknown_of_a_network_without_kernels():
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    assert connectivity(network, None) is None


def test_an_interruption_loses_no_finished_attack(plain, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trs.evaluation.RobustnessSuite, "auto_attack", interrupted)
    given = (f"--network={plain}", "--attacks=clean,fgsm,pgd,square", f"--results_file={tmp_path / 'r.json'}")
    done = run_script(ROBUSTNESS, *QUICK, *given, "--pgd_iters=2", "--pgd_restarts=1").expect(130)
    assert "the results file has the attacks that ended" in done.err
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["unfinished"] is True and list(found["attacks"]) == ["fgsm", "pgd"]
    assert found["robust_accuracy"] == found["attacks"]["pgd"]["worst_case_accuracy"]


def test_attacks_of_autoattack_alone(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(attack_versions.VERSIONS, "standard", SHORT_VERSION)
    given = (f"--network={plain}", "--attacks=autoattack,square", "--individual", f"--report={tmp_path / 'page.md'}")
    done = run_script(ROBUSTNESS, *QUICK, *given, f"--results_file={tmp_path / 'r.json'}").expect()
    found = json.loads((tmp_path / "r.json").read_text())
    assert list(found["attacks"]) == [*(f"autoattack: {part}" for part in SHORT_VERSION), "square"]
    assert found["attacks"]["autoattack: square"]["broken"] == found["attacks"]["square"]["broken"]
    assert "robust accuracy by APGD-CE" in done.out and "| autoattack: apgd-ce |" in (tmp_path / "page.md").read_text()


def test_a_softmax_is_taken_off_a_model_of_keras(tmp_path):
    network = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(10, activation="softmax"))
    network.save(tmp_path / "network.h5")
    given = (f"--network={tmp_path / 'network.h5'}", "--attacks=fgsm", "--strip_softmax")
    run_script(ROBUSTNESS, *QUICK, *given).expect()
    assert json.loads((tmp_path / "robustness.json").read_text())["flag_names"] == []


BAD = [
    ("unknown attack", ["--attacks=clean,boundary"], "--attacks=clean,boundary", "not boundary"),
    ("no attack", ["--attacks="], "--attacks=", "expected some of"),
    ("an attack twice", ["--attacks=pgd,pgd"], "--attacks=pgd,pgd", "pgd 2 times"),
    ("transfer from nowhere", ["--attacks=transfer"], "--attacks=transfer", "--transfer_from=PATH"),
    ("transfer from a missing one", ["--attacks=transfer", "--transfer_from=no"], "--transfer_from=no", "not exist"),
    ("epsilon in levels", ["--epsilon=8"], "--epsilon=8", "8/255"),
    ("radii in levels", ["--epsilons=2,8"], "--epsilons=8", "8/255"),
    ("PGD in L1", ["--norm=L1", "--attacks=pgd"], "--norm=L1", "Linf or L2 with --attacks=pgd"),
    ("a curve in L1", ["--norm=L1", "--epsilons=1"], "--norm=L1", "Linf or L2 with --epsilons"),
    ("a state without AutoAttack", ["--attacks=pgd", "--state_file=s.json"], "--state_file=s.json", "autoattack"),
    ("steps of no attack", ["--attacks=clean", "--pgd_iters=7"], "--pgd_iters", "pgd or transfer, or --epsilons"),
    ("other images of no row", ["--noadditional_data"], "--noadditional_data", "belongs to --robustbench_file"),
    ("a title of nothing", ["--title=A"], "--title=A", "belongs to --robustbench_file or --report"),
    ("padding", ["--padding_mode=symmetric"], "--padding_mode", "read from its file"),
    ("scores of no checkpoint", ["--k=0.1"], "--k=0.1", "a PyTorch checkpoint"),
    ("alone with a state", ["--individual", "--state_file=s.json"], "--state_file=s.json", "drop it or --individual"),
    ("a page in a directory", ["--report=."], "--report=.", "a directory of that name"),
    ("two files in one", ["--report=a", "--results_file=a"], "--report and --results_file", "write a;"),
    (
        "examples in the state's",
        ["--state_file=s", "--save_adversarials=s.npz"],
        "--save_adversarials and --state_file",
        "write s.npz",
    ),
    ("no corruptions", ["--attacks=corruptions", "--corruptions_dir=no"], "--corruptions_dir=no", "a folder"),
    ("two networks", ["--network=x.keras"], "--network=x.keras and --saved_model=", "pass one of them"),
]


@pytest.mark.parametrize(("arguments", "flag", "expected"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_flags(arguments, flag, expected, finished):
    few = [each for each in FEW if each.partition("=")[0] not in [a.partition("=")[0] for a in arguments]]
    done = run_script(ROBUSTNESS, *few, f"--saved_model={finished / 'serve'}", *arguments)
    assert_explained(done, flag, expected)
    assert done.code == 2
    assert not (finished / "robustness.json").exists()


def test_missing_networks():
    assert_explained(run_script(ROBUSTNESS, *FEW, "--saved_model=no"), "--saved_model=no", "does not exist")
    done = run_script(ROBUSTNESS, *FEW, "--model=resnet34")
    assert_explained(
        done, "--network is missing", "saved_models/fashion_mnist_sample_resnet34_at_dense/serve nor results/"
    )


def test_a_report_needs_matplotlib(finished, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    done = run_script(ROBUSTNESS, *FEW, f"--saved_model={finished / 'serve'}", "--report=page.md")
    assert_explained(done, "--report=page.md", "matplotlib", "pip install")


def test_a_damaged_or_foreign_state_file_is_named_before_any_attack(plain, natural, everything, tmp_path, monkeypatch):
    def attacked(*_):
        raise AssertionError("an attack has run")

    monkeypatch.setattr(trs.evaluation.RobustnessSuite, "gradient_attack", attacked)
    state = tmp_path / "state.json"
    state.write_text("{")
    for network, file, problem in (
        (f"--saved_model={natural / 'serve'}", state, "damaged; delete both"),
        (f"--network={plain}", everything[1] / "state.json", "belongs to another network"),
    ):
        given = (network, "--attacks=fgsm,pgd,autoattack", f"--state_file={file}")
        done = run_script(ROBUSTNESS, *FEW, *given, f"--results_file={tmp_path / 'r.json'}")
        line = done.err.splitlines()[-1]
        assert line.startswith(f"error: --state_file={file}: ") and problem in line
        assert done.code == 1 and not (tmp_path / "r.json").exists()


def test_default_targets_are_checked(natural, tmp_path):
    (tmp_path / "serve").symlink_to(natural / "serve")
    (tmp_path / "robustness.json").mkdir()
    done = run_script(ROBUSTNESS, *FEW, f"--saved_model={tmp_path / 'serve'}")
    assert_explained(done, f"--results_file={tmp_path / 'robustness.json'}", "a directory of that name")
