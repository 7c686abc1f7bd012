"""Trains networks whose vulnerable channels are dropped: adversarial neural pruning.

    python run_scripts/run_neural_pruning.py --net=lenet_conv --data_dir=DIR --mode=base
    python run_scripts/run_neural_pruning.py --net=lenet_conv --data_dir=DIR --mode=bbd --adv_train \\
        --eps=0.3 --step_size=0.01 --pgd_steps=20 --eval_steps=40 --beta_weight=4 --lambda_weight=1e-3

train a network and then, from its weights, gates and weights under attack. Finished runs are evaluated by

    python run_scripts/run_neural_pruning.py ... --eval_mode=test                   # cost and clean accuracy
    python run_scripts/run_neural_pruning.py ... --eval_mode=attack                 # attacks of the network itself
    python run_scripts/run_neural_pruning.py ... --eval_mode=attack --nowhite_box   # attacks of an independent one,
                                                                                    # trained with --train_source

A run leaves what every training run leaves: `network.keras`, `serve/`, `run.flags`, `results.json` and `checkpoints/`;
an evaluation leaves `cost.json`, `white_box.json` or `black_box.json` beside them, with --draw_loss also
`loss_surface.png`. `run_vulnerability_plots.py` draws several runs side by side.
"""

import json
from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import (
    command_line,
    devices,
    neural_flags,
    neural_objects,
    report,
    run_directory,
    settings,
    training_run,
)
from tf_robust_sparse.cli.sections.attacks import TestAttack
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import Output, Run

FLAGS = flags.FLAGS
IF_INTERRUPTED = training_run.IF_INTERRUPTED


def define() -> None:
    """Defines the flags."""
    Data.define()
    neural_flags.define()
    TestAttack.define()
    Output.define()
    Run.define(save_every=20)
    with command_line.section("Evaluation"):
        flags.DEFINE_enum("eval_mode", "train", ["train", "test", "attack"], "Train, or evaluate the finished run.")
        flags.DEFINE_bool("white_box", True, "Attack the network itself; with --nowhite_box another one.")
        flags.DEFINE_string(
            "source",
            None,
            "Run attacked with --nowhite_box; by default the one trained with --train_source --adv_train.",
        )
        flags.DEFINE_enum("attack_source", "base", neural_flags.MODES, "Mode of that run.")
        flags.DEFINE_bool(
            "draw_loss", False, "With --eval_mode=attack: draw the loss around the first 100 test images."
        )
        command_line.define_aliases({"directory": "output_dir", "save_freq": "save_every"})
    neural_flags.set_defaults()


def main() -> None:
    """Trains or evaluates."""
    neural_flags.check()
    settings.check()
    if FLAGS.draw_loss and FLAGS.eval_mode != "attack":
        raise command_line.BadFlag(f"--draw_loss: expected --eval_mode=attack. Received: --eval_mode={FLAGS.eval_mode}")
    if FLAGS.draw_loss:
        with command_line.about("draw_loss"):
            trs.evaluation.check_matplotlib()
    command_line.note_unused(neural_flags.MEANINGFUL)
    devices.choose("gpuid")
    directory = run_directory.chosen(neural_flags.directory())
    if FLAGS.eval_mode != "train":
        evaluate(directory)
    elif FLAGS.load_model:
        training_run.evaluate_again(directory)
    else:
        train(directory)


def train(directory: Path) -> None:
    """Trains, selects, saves and evaluates."""
    begins_with = neural_flags.start()
    run = training_run.prepare(directory)
    if run is None:
        return
    command_line.say_deviations("ANP_VS", neural_flags.deviations())
    with run.strategy.scope():
        network = neural_objects.network(run)
        model = neural_objects.model(run, network)
    callbacks = (neural_objects.PruningRecord(network),)
    state = training_run.train(run, model, neural_flags.config(), callbacks)
    more = {"mode": FLAGS.mode, "init_from": str(begins_with) if begins_with else None}
    training_run.finish(run, model, state, more, neural_objects.measure)


def evaluate(directory: Path) -> None:
    """Measures a finished run again and writes down what it finds."""
    network = loaded(directory, "output_dir")
    check_network(directory)
    images = Data.read().load()
    if FLAGS["thres"].present:
        for gate in trs.layers.gates(network):
            gate.threshold = FLAGS.thres
    if FLAGS.eval_mode == "test":
        cost = neural_objects.efficiency(network)
        if trs.layers.gates(network):
            cost["materialised"] = neural_objects.materialised(network)
        clean = trs.evaluation.evaluate_robustness(trs.saving.strip(network), Data.read().test_batches(images), [])
        neural_objects.record(directory, "cost.json", {"clean_accuracy": clean["clean_accuracy"], **cost})
        print(f"Clean accuracy      {100 * clean['clean_accuracy']:6.2f} %")
        show_cost(cost)
        return
    source = None
    if not FLAGS.white_box:
        default = neural_flags.directory(FLAGS.attack_source, source=True)
        source = loaded(Path(FLAGS.source).expanduser() if FLAGS.source else default, "source")
    found = neural_objects.attacked(network, images, neural_objects.evaluation_attack(), source)
    neural_objects.record(directory, "white_box.json" if FLAGS.white_box else "black_box.json", found)
    print(f"Clean accuracy      {100 * found['clean_accuracy']:6.2f} %   on {found['images']} test images")
    print(f"Robust accuracy     {100 * found['robust_accuracy']:6.2f} %   {report.words(found['attack'])}")
    print(f"Vulnerability       {found['vulnerability']:8.4f}   largest {found['largest_vulnerability']:.4f}")
    if FLAGS.draw_loss:
        surface = neural_objects.loss_surface(network, images)
        trs.evaluation.draw_loss_surfaces({directory.name: surface}, directory / "loss_surface.png")
        print(f"Loss surface        {directory / 'loss_surface.png'}")


def show_cost(cost: dict[str, Any]) -> None:
    """Prints what `neural_objects.efficiency` and `neural_objects.materialised` found."""
    left = cost.get("materialised")
    for name, value in cost.items():
        if name != "materialised":
            print(f"{name.replace('_', ' '):19} {value if isinstance(value, list) else f'{value:.6g}'}")
    if left:
        print(
            f"left without gates  {left['parameters']:.2f} % of parameters, {left['multiply_adds']:.2f} % of operations"
        )
        for size, ms in left["latency"].items():
            print(f"{f'batch of {size}':19} {ms['after']:.3f} ms instead of {ms['before']:.3f}")


def check_network(directory: Path) -> None:
    """Checks that a finished run is one of the network of --net.

    Raises:
        BadFlag: if it is another one's.
    """
    record = directory / "results.json"
    model = json.loads(record.read_text()).get("model", FLAGS.model) if record.is_file() else FLAGS.model
    if model != FLAGS.model:
        raise command_line.BadFlag(
            f"--net={FLAGS.model}: expected --net={model}, which {directory} holds. Received: another"
        )


def loaded(directory: Path, flag: str) -> keras.Model:
    """Returns the network of a finished run."""
    if not (directory / "network.keras").is_file():
        raise command_line.BadFlag(
            f"--{flag}: expected the directory of a finished run. Received: {directory}, which holds no network.keras"
        )
    with command_line.about(flag):
        return trs.load_network(directory)
