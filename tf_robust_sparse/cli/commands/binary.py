"""Finds a robust network of signs inside a random one: scores are learned, the weights never change.

    python run_scripts/run_binary_subnetworks.py --data=cifar10 --data_dir=DIR --model=resnet34 --prune_rate=0.01 \\
        --pr_scale=0.1 --score_init_scale=0.01 --fan_scaled_score_mode=none --init=binary --end_with_bn

or with an unchanged configuration file of RobustBinarySubNet; flags override its values:

    python run_scripts/run_binary_subnetworks.py --config=resnet34-binary-weights.yaml --data_dir=DIR --prune_rate=0.01

--trainer=adv_step trains on PGD, adv_trades by TRADES, adv_step_fast on one step from perturbations that are kept for
every image; adv_step_lottery_finetune and adv_step_lottery_retrain train the weights of the sub-network that
--pretrained found, from its signs or from new ones. --conv_type=DenseConv and BinConv are the baselines: a dense
network, and one trained to be signs. --evaluate does not train: AutoAttack runs on the network of the finished run in
the directory, or with --pretrained=FILE on another one or a published checkpoint, which is taken over before. Each
evaluation is kept in a folder of its own, `autoattack/<number>`: `aa-log.txt` and `results.json`.

Leaves what every training run leaves, `network.trs`, the network in about a bit and a position per weight, and
`learning_curve.png`. Differences from the published code are printed at the start.
"""

from pathlib import Path

import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse.cli import binary, command_line, devices, report, run_directory, settings, training_run
from tf_robust_sparse.cli.binary.network import Trainer
from tf_robust_sparse.cli.sections.attacks import TestAttack, TrainingAttack
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.run import Output, Run
from tf_robust_sparse.evaluation.leaderboard import radius
from tf_robust_sparse.saving.compact import COMPACT_SUFFIX

IF_INTERRUPTED = training_run.IF_INTERRUPTED
COMPACT = f"network{COMPACT_SUFFIX}"


def define() -> None:
    """Defines the flags."""
    Data.define(batch_size=256)
    binary.network.Network.define()
    binary.network.Drawing.define()
    binary.network.Pruning.define()
    binary.training.TrainingImages.define(without=("data_fraction", "semisup_fraction"), aliases=False)
    Trainer.define()
    binary.training.Loss.define()
    binary.training.Sharpness.define()
    binary.training.Watch.define()
    binary.training.Optimizer.define()
    TrainingAttack.define()
    binary.attacks.Attack.define()
    binary.attacks.ValidationAttack.define()
    binary.attacks.Augmentation.define()
    binary.attacks.Ensemble.define()
    Machines.define()
    TestAttack.define()
    Output.define()
    Run.define()
    binary.originals.define()


def main() -> None:
    """Trains, or takes over a network."""
    devices.choose("multigpu", replicas=True)
    binary.originals.translate()
    settings.check()
    directory = run_directory.chosen(Path("saved_models") / binary.training.run_name())
    if Run.read().load_model:
        if Trainer.read().pretrained:
            take_over(directory)
        else:
            training_run.evaluate_again(directory, binary.network.OF_NETWORK)
        ensemble = binary.attacks.Ensemble.read()
        if ensemble.version is not None:
            attack(directory, ensemble)
        return
    run = training_run.prepare(directory, files={COMPACT: trs.saving.save_compact})
    if run is None:
        return
    command_line.say_deviations("RobustBinarySubNet", binary.training.deviations())
    with run.strategy.scope():
        network = binary.weights.network(run)
        model = binary.training.model(run, network)
    state = training_run.train(run, model, binary.training.config(), binary.training.callbacks(run, model))
    binary.training.end(model)
    attacked = binary.network.Trainer.read().trainer != "adv_trades"
    training_run.finish(run, model, state, binary.network.describe(network), trains_on_attacked=attacked)
    if training_run.is_chief():
        print(f"Compact network     {directory / COMPACT}, {(directory / COMPACT).stat().st_size} bytes")


def take_over(directory: Path) -> None:
    """Makes a directory like that of a run of a network that is trained already."""
    run_directory.check(directory)
    binary.weights.adopt_flags()
    images = Data.read().load()
    network = binary.network.built(images)
    binary.weights.load_pretrained(network, images)
    run_directory.begin(directory)
    report.save(network, directory)
    trs.saving.save_compact(network, directory / COMPACT)
    results = {
        **report.evaluate(network, images, attacked=False),
        **binary.network.describe(network),
        "pretrained": Trainer.read().pretrained,
        "model": binary.network.Network.read().model,
    }
    run_directory.write_results(directory / "results.json", results, images)
    report.show(results, directory)


def attack(directory: Path, ensemble: binary.attacks.Ensemble) -> None:
    """Runs AutoAttack on the network of a directory, and keeps its log and results in a folder of their own."""
    data = Data.read()
    images = data.load()
    with command_line.about("output_dir"):
        network = trs.load_network(directory)
    folder = run_directory.numbered(directory / "autoattack")
    # Each attack is compiled once, which TensorFlow takes for tracing again and again.
    tf.get_logger().setLevel("ERROR")
    with command_line.about("output_dir", "data"):
        suite = trs.evaluation.RobustnessSuite(network, data.test_batches(images), data.batch_size)
    auto_attack = ensemble.build(network, folder / "aa-log.txt")
    suite.auto_attack("autoattack", auto_attack)
    results = suite.results()
    run_directory.write_results(folder / "results.json", results, images)
    ball = f"epsilon {radius(auto_attack.norm, auto_attack.epsilon)}, {results['images']} images"
    report.show_share("AutoAttack", results["robust_accuracy"], f"{ensemble.version}, {ball}")
    for warning in results["flags"]:
        print(f"Warning: {warning}")
    print(f"Record              {folder}: aa-log.txt, results.json", flush=True)
