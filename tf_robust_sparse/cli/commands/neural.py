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
an evaluation leaves `cost.json`, `white_box.json` or `black_box.json` next to them, with --draw_loss also
`loss_surface.png`. `run_vulnerability_plots.py` draws several runs side by side.
"""

import json
from pathlib import Path
from typing import Any

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, devices, networks, neural, report, run_directory, settings, training_run
from tf_robust_sparse.cli.neural.settings import Evaluation, Network
from tf_robust_sparse.cli.sections.attacks import TestAttack
from tf_robust_sparse.cli.sections.data import Data, TrainingImages
from tf_robust_sparse.cli.sections.run import Output, Run
from tf_robust_sparse.evaluation.feature_figures import draw_loss_surfaces

IF_INTERRUPTED = training_run.IF_INTERRUPTED


def define() -> None:
    """Defines the flags."""
    Data.define(batch_size=64)
    Network.define()
    TrainingImages.define_shared(validation_examples=0)
    neural.settings.Training.define()
    neural.settings.Optimizer.define()
    neural.settings.Attack.define()
    neural.settings.Augmentation.define()
    neural.settings.Machines.define()
    TestAttack.define(pgd_iters=40, pgd_restarts=1)
    Output.define()
    Run.define(save_every=20, select="last")
    Evaluation.define()
    command_line.define_aliases({"directory": "output_dir", "save_freq": "save_every"})


def main() -> None:
    """Trains or evaluates."""
    settings.check()
    devices.choose("gpuid")
    directory = run_directory.chosen(neural.settings.directory())
    evaluation = Evaluation.read()
    if evaluation.eval_mode != "train":
        evaluate(directory, evaluation)
    elif Run.read().load_model:
        training_run.evaluate_again(directory)
    else:
        train(directory)


def train(directory: Path) -> None:
    """Trains, selects, saves and evaluates."""
    begins_with = Network.read().start()
    run = training_run.prepare(directory)
    if run is None:
        return
    command_line.say_deviations("ANP_VS", neural.settings.deviations())
    with run.strategy.scope():
        network = neural.objects.network(run)
        model = neural.objects.model(run, network)
    callbacks = (neural.objects.PruningRecord(network),)
    state = training_run.train(run, model, more=callbacks)
    more = {"mode": Network.read().mode, "init_from": str(begins_with) if begins_with else None}
    training_run.finish(run, model, state, more, neural.objects.measure)


def evaluate(directory: Path, evaluation: Evaluation) -> None:
    """Measures a finished run again and writes down what it finds."""
    network = networks.load(directory, "output_dir", layers=True)
    check_network(directory)
    images = Data.read().load()
    if settings.is_given("thres"):  # otherwise that of the run counts
        for gate in trs.layers.gates(network):
            gate.threshold = Network.read().thres
    if evaluation.eval_mode == "test":
        cost = neural.objects.efficiency(network)
        if trs.layers.gates(network):
            cost["materialised"] = neural.objects.without_gates(network)
        clean = trs.evaluation.evaluate_robustness(trs.saving.strip(network), Data.read().test_batches(images), [])
        neural.objects.record(directory, "cost.json", {"clean_accuracy": clean["clean_accuracy"], **cost})
        report.show_share("Clean accuracy", clean["clean_accuracy"])
        show_cost(cost)
        return
    source = None if evaluation.white_box else networks.load(evaluation.source_directory(), "source", layers=True)
    attack = neural.settings.Attack.read().for_evaluation()
    found = neural.objects.attacked(network, images, attack, source)
    neural.objects.record(directory, "white_box.json" if evaluation.white_box else "black_box.json", found)
    report.show_share("Clean accuracy", found["clean_accuracy"], f"on {found['images']} test images")
    report.show_share("Robust accuracy", found["robust_accuracy"], report.words(found["attack"]))
    print(f"Vulnerability       {found['vulnerability']:8.4f}   largest {found['largest_vulnerability']:.4f}")
    if evaluation.draw_loss:
        surface = neural.objects.loss_surface(network, images)
        draw_loss_surfaces({directory.name: surface}, directory / "loss_surface.png")
        print(f"Loss surface        {directory / 'loss_surface.png'}")


def show_cost(cost: dict[str, Any]) -> None:
    """Prints what `neural.objects.efficiency` and `neural.objects.without_gates` found."""
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
    given = Network.read().model
    model = json.loads(record.read_text()).get("model", given) if record.is_file() else given
    if model != given:
        raise command_line.BadFlag(f"--net={given} is not the network in {directory}; pass --net={model}")
