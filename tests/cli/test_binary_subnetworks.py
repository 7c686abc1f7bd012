"""Binary sub-networks from the command line: a tiny run, what is made of it, evaluations, and bad input."""

import json
import shutil

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.binary_runs import BINARY, EVALUATION, FEW, meaning
from tests.cli.conftest import run_script
from tests.cli.drill import kill_at
from tests.cli.test_bad_input import assert_explained
from tf_robust_sparse.cli import binary, training_run
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.sparsity.scores import subnet_layers

pytestmark = pytest.mark.usefixtures("one_block")

STAGES = (
    *(*FEW, "--epochs=2", "--trainer=adv_step_fast", "--init=binary", "--pr_steps=2", "--mix=cutmix", "--save_every=1"),
    *("--debug", "--explode_th=0", "--eps_schedule=name=linear,start_v=10,slope=10", "--test_every_epoch"),
)


def results(directory):
    return json.loads((directory / "results.json").read_text())


# Of the shortened network: the stem, a block of two convolutions with a shortcut, nine features of each of 13 channels.
WEIGHTS = 9 * 6 + 9 * 6 * 13 + 9 * 13 * 13 + 6 * 13 + 9 * 13 * 10


@pytest.fixture(scope="module")
def found(one_block, tmp_path_factory):
    """The directory of a tiny run that was killed at its last file and went on; not to be changed.

    Beside it stands the network as it was when the run was killed.
    """
    directory = tmp_path_factory.mktemp("binary") / "run"
    with kill_at("network.trs"):
        run_script(BINARY, *STAGES, f"--output_dir={directory}")
    assert not (directory / "results.json").exists() and not (directory / "network.trs").exists()
    shutil.copy(directory / "network.keras", directory.with_name("killed.keras"))
    return directory, run_script(BINARY, *STAGES, "--resume", f"--output_dir={directory}").expect()


def test_a_run_finds_a_network_of_signs(found):
    directory, done = found
    network = trs.load_network(directory)
    record = results(directory)
    planned = trs.sparsity.keep_fractions(network, 0.1, "adaptive", 0.1)
    assert record["keep_fractions"] == pytest.approx(planned) and record["trainer"] == "adv_step_fast"
    for layer in subnet_layers(network):
        kernel = np.asarray(layer.effective_kernel)
        assert set(np.unique(kernel)) <= {-1, 0, 1} and np.count_nonzero(kernel) == layer.kept
    assert record["nonzero"] == sum(layer.kept for layer in subnet_layers(network))
    assert {layer.name for layer in network.layers} >= {"classifier_bn"}
    packed = trs.load_network(directory / "network.trs")
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    np.testing.assert_array_equal(packed(x, training=False), network(x, training=False))
    assert "network.trs" in done.out
    assert "Unlike RobustBinarySubNet: kept perturbations are float16" in done.out
    assert "test_every_epoch" not in done.out
    row = json.loads((directory / "checkpoints/history.json").read_text())[-1]
    assert row["test_accuracy"] == pytest.approx(record["clean_accuracy"]) and 0 <= row["test_robust_accuracy"] <= 1
    assert "--trainer=adv_step_fast\n" in (directory / "run.flags").read_text()


@pytest.mark.parametrize("trainer", binary.network.LOTTERY)
def test_the_strong_and_the_weak_ticket_keep_the_mask(trainer, found, parse):
    directory, _ = found
    more = (f"--trainer={trainer}", "--init=lottery_binary", f"--pretrained={directory}", "--seed=5")
    meaning(parse, *FEW, *more)
    images, before = Data.read().load(), trs.load_network(directory)
    network = binary.network.built(images)
    binary.weights.load_pretrained(network, images)
    trs.training.Phase("finetune").begin(network)
    names = {variable.path.rpartition("/")[2] for variable in network.trainable_variables}
    assert names == {"kernel"}
    agreeing, total = 0, 0
    for one, two in zip(subnet_layers(before), subnet_layers(network), strict=True):
        old, new = np.asarray(one.effective_kernel), np.asarray(two.effective_kernel)
        np.testing.assert_array_equal(new != 0, old != 0)
        assert set(np.unique(new)) <= {-1, 0, 1}
        agreeing += (old == new)[old != 0].sum()
        total += (old != 0).sum()
    assert agreeing == total if trainer.endswith("finetune") else 0.35 < agreeing / total < 0.65  # its signs, or new
    moved = network.get_layer("stem_bn").moving_mean.numpy().any()
    assert moved == trainer.endswith("finetune")  # batch norm starts anew with new signs
    if trainer.endswith("retrain"):
        meaning(parse, *FEW, *more[:-1])  # the seed of the run that found the mask
        with pytest.raises(BadFlag, match="--seed=0 draws the signs of --pretrained again"):
            binary.weights.load_pretrained(binary.network.built(images), images)


@pytest.mark.full
def test_the_baseline_is_trained_to_be_signs(tmp_path):
    more = ("--conv_type=BinConv", "--optimizer=adam", "--lr=0.001", "--binconv-stochastic", "--attack_bn=eval")
    run_script(BINARY, *FEW, *more, "--reweight=prob", f"--output_dir={tmp_path / 'run'}").expect()
    network = trs.load_network(tmp_path / "run")
    for layer in trs.layers.kernel_layers(network):
        assert set(np.unique(layer.effective_kernel)) == {-1, 1} and np.abs(layer.kernel).max() <= 1
    assert results(tmp_path / "run")["objective"]["objective"] == "Reweighted"
    # A bit per weight; batch norm and the description.
    assert (tmp_path / "run/network.trs").stat().st_size < WEIGHTS / 8 + 3_000


def test_stages_radii_boxes_and_kept_checkpoints_and_a_run_ends_with_its_last_file(found):
    directory, _ = found
    history = json.loads((directory / "checkpoints/history.json").read_text())
    kept = [row["nonzero"] for row in history]
    assert kept == pytest.approx([0.1**0.5 * WEIGHTS, 0.1 * WEIGHTS], abs=5)
    before = trs.load_network(directory.with_name("killed.keras"))
    for one, two in zip(before.variables, trs.load_network(directory).variables, strict=True):
        np.testing.assert_array_equal(one, two)
    assert results(directory)["nonzero"] == kept[1] and results(directory)["selected"]["epoch"] == 2
    packed = (directory / "network.trs").read_bytes()
    (directory / "network.trs").unlink()  # as of a run that was killed after its results
    done = run_script(BINARY, *STAGES, "--resume", f"--output_dir={directory}").expect()
    assert "Completed:          network.trs" in done.out and (directory / "network.trs").read_bytes() == packed
    objective = results(directory)["objective"]
    assert objective["schedule"]["radii"] == pytest.approx([10 / 255, 20 / 255])
    assert objective["of"]["mix"] == "cutmix" and objective["of"]["epsilon"] == 0.1
    checkpoints = {path.name for path in (directory / "checkpoints").glob("epoch_*")}
    assert checkpoints == {"epoch_1.weights.h5", "epoch_2.weights.h5"}
    assert "--eps_schedule=name=linear,start_v=10,slope=10\n" in (directory / "run.flags").read_text()


def test_a_pretrained_network_is_taken_over(found, tmp_path):
    directory, _ = found
    more = ("--evaluate", f"--pretrained={directory / 'network.trs'}", "--init=binary", "--autoattack=apgd-ce")
    done = run_script(BINARY, *FEW, *more, f"--output_dir={tmp_path / 'run'}").expect()
    assert results(tmp_path / "run")["clean_accuracy"] == pytest.approx(results(directory)["clean_accuracy"])
    folder = tmp_path / "run/autoattack/0"
    assert f"{folder}" in done.out and "robust accuracy" in (folder / "aa-log.txt").read_text()
    record = results(folder)
    assert record["clean_accuracy"] == pytest.approx(results(directory)["clean_accuracy"])
    assert record["attacks"]["autoattack"]["epsilon"] == 0.1
    assert record["robust_accuracy"] <= results(directory)["robust_accuracy"]  # PGD with a single step
    other = (*FEW, "--evaluate", f"--pretrained={directory}", "--init=binary", "--pr_scale=1")
    assert_explained(run_script(BINARY, *other, f"--output_dir={tmp_path / 'x'}"), "--pr_scale=1", "--pr_scale=0.1")


@pytest.mark.full
def test_each_evaluation_has_a_folder_of_its_own(found, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(found[0], directory)
    (directory / "autoattack/0").mkdir(parents=True)
    more = ("-e", "--init=binary", "--autoattack=apgd-ce", "--pgd_epsilon=0.01", "--test_examples=4")
    done = run_script(BINARY, *FEW, *more, f"--output_dir={directory}").expect()
    assert f"{directory / 'autoattack/1'}" in done.out and not any((directory / "autoattack/0").iterdir())
    assert results(directory / "autoattack/1")["attacks"]["autoattack"]["epsilon"] == 0.01
    assert results(directory) == results(found[0])  # the record of the training stays


def test_its_configuration_of_autoattack_evaluates(parse, config, found, tmp_path, capsys):
    run = tmp_path / "store/resnet34-binary-weights/quick/prune_rate=0.1/0"
    shutil.copytree(found[0], run)
    file = config(EVALUATION, dataset="x", model_type="x")
    command = (f"--config={file}", "--model_name=quick", "--dataset=fashion_mnist_sample", "--model=resnet18_p1")
    command += ("--multigpu=0,1", f"--pretrained={run}/checkpoints/model_best.pth", "--normalize=none")
    flags = meaning(parse, *command)
    assert flags.load_model and (flags.epsilon, flags.norm, flags.batch_size) == (8 / 255, "linf", 512)
    assert flags.output_dir == "runs/cifar10-resnet34/aa/config/quick/prune_rate=0.01/0"
    binary.weights.adopt_flags()
    assert "there is no model_best.pth" in capsys.readouterr().out
    # What the run recorded of its network, which the configuration does not say.
    assert (flags.end_with_bn, flags.prune_rate, flags.pr_scale, flags.init) == (True, 0.1, 0.1, "binary")
    images = Data.read().load()
    network = binary.network.built(images)
    binary.weights.load_pretrained(network, images)
    source = trs.load_network(found[0])
    np.testing.assert_array_equal(network(images.test_images[:2] / 255), source(images.test_images[:2] / 255))
    meaning(parse, *command, "--prune-rate=0.3")
    with pytest.raises(BadFlag, match=r"--prune_rate=0.3 does not match.*pass --prune_rate=0.1"):
        binary.weights.adopt_flags()


@pytest.mark.parametrize("last", [True, False])
def test_a_checkpoint_tells_whether_it_ends_with_batch_norm(last, parse, tmp_path):
    few = [word for word in FEW if word != "--end-with-bn"]
    entries = {"conv1.weight": np.zeros((6, 1, 3, 3)), **({"last.running_mean": np.zeros(10)} if last else {})}
    np.savez(tmp_path / "a.npz", **entries)
    meaning(parse, *few, "--evaluate", f"--pretrained={tmp_path / 'a.npz'}", f"--{'no' if last else ''}end_with_bn")
    images = Data.read().load()
    with pytest.raises(BadFlag, match=f"{'has a' if last else 'has no'} batch norm.*{'pass' if last else 'leave out'}"):
        binary.weights.load_pretrained(binary.network.built(images), images)


def test_bad_input():
    for words, expected in (
        (["--prune_rate=0"], ("--prune_rate=0", "in (0, 1]")),
        (["--config=no.yaml"], ("--config=no.yaml", "YAML file")),
        (["--mix=cutmix"], ("--mix=cutmix belongs to --trainer=adv_step_fast",)),
    ):
        assert_explained(run_script(BINARY, "--data=fashion_mnist_sample", *words), *expected)


def test_fixed_masks_stay_and_their_weights_train(parse, tmp_path):
    meaning(parse, *FEW, "--conv_type=FixedSubnetConv", "--nofreeze_weights", "--prune_rate=0.3")
    run = training_run.prepare(tmp_path / "run")
    network = binary.weights.network(run)
    names = {variable.path.split("/")[-1] for variable in network.trainable_variables}
    assert "kernel" in names and "scores" not in names
    mask = np.array(network.get_layer("stem").effective_kernel) != 0
    model = binary.training.model(run, network)
    images = np.random.default_rng(0).random((8, *network.input_shape[1:]), "float32")
    model.fit(images, np.arange(8) % 10, epochs=1, batch_size=8, verbose=0)
    np.testing.assert_array_equal(np.array(network.get_layer("stem").effective_kernel) != 0, mask)
    meaning(parse, *FEW, "--conv_type=FixedSubnetConv")
    with pytest.raises(BadFlag, match="FixedSubnetConv leaves nothing to train"):
        binary.weights.network(training_run.prepare(tmp_path / "run"))


def test_the_numerics_are_those_of_the_published_code(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    meaning(parse, *FEW, "--trainer=adv_trades", "--label_smoothing=0.1", "--nodrop_last")
    run = training_run.prepare(tmp_path / "run")
    network = binary.weights.network(run)
    norms = [layer for layer in network.layers if isinstance(layer, trs.layers.BatchNormalization)]
    assert norms and all(layer.unbiased for layer in norms)  # of PyTorch
    model = binary.training.model(run, network)
    assert model.objective.clean_updates == 2 and model.objective.label_smoothing == 0.1
    assert model.validation_attack.norm == "linf" and model.validation_attack.keep_best
    assert run.steps_per_epoch == -(-len(run.images.train_labels) // 32)
    meaning(parse, *FEW, "--norm=l2")
    run = training_run.prepare(tmp_path / "run")
    model = binary.training.model(run, network)
    assert model.validation_attack.norm == "l2" and model.validation_attack.keep_best
    assert isinstance(model.objective.attack, trs.attacks.L2PGD) and model.objective.attack.keep_best
    assert run.steps_per_epoch == 2
    assert meaning(parse, *FEW, "--strategy=mirrored").drop_last
    assert any("over all replicas" in text for text in binary.training.deviations())


def test_scores_of_the_last_layer_alone(parse, tmp_path):
    meaning(parse, *FEW, "--conv_type=DenseConv", "--last_layer_type=SubnetConv")
    network = binary.weights.network(training_run.prepare(tmp_path / "run"))
    last = network.get_layer("classifier")
    assert last.scores.trainable and not last.kernel.trainable and network.get_layer("stem").kernel.trainable


def test_a_ticket_needs_where_it_was_found(parse, tmp_path):
    meaning(parse, *FEW, "--trainer=adv_step_lottery_retrain", "--init=lottery_binary", "--resume")
    with pytest.raises(BadFlag, match="no checkpoint to --resume from"):
        binary.weights.network(training_run.prepare(tmp_path / "run"))


def test_what_is_evaluated_is_the_network_of_the_last_stage(parse):
    kept = []
    for words in ([], ["--epochs=2", "--pr_steps=2"]):
        meaning(parse, *FEW, *words, "--evaluate", "--prune_rate=0.04")
        kept.append(trs.sparsity.statistics.summary(binary.network.built(Data.read().load()))["nonzero"])
    assert kept[0] == kept[1]


def test_evaluation_minds_how_the_run_was_trained(found):
    directory, _ = found
    for words, message in (("--model=resnet50", "--model=resnet50"), ("--prune_rate=0.7", "--prune_rate=0.7")):
        assert_explained(run_script(BINARY, "--evaluate", words, f"--output_dir={directory}"), message)
