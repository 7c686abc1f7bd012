"""Turns lottery ticket experiments into curves, early stopping, weight densities and tables.

    python run_scripts/run_lottery_analysis.py --dataset=digits --attack=pgd --adv_train
    python run_scripts/run_lottery_analysis.py --table

The first draws what run_lottery_tickets.py has finished so far, with the same flags, into
`<base_dir>/<dataset>/<model>/analysis/<attack>/lr-..._l1-..._advtrain-.../`: curves over training steps, measures over
sparsity, early stopping, densities of initial weights, remaining layers and pixels, and `comparison.md`. The second
writes tables of digits, fashion, sample and what --dataset says, natural and adversarial training side by side, into
`<base_dir>/tables/`, as Markdown, CSV and LaTeX, and a figure of accuracies and overlaps of masks by kind of training.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, lottery_flags
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.evaluation import ticket_figures, ticket_tables, tickets

FLAGS = flags.FLAGS


STRATEGIES = ("reinit_orig", "reinit_rand", "reinit_none")
_DENSITIES = ("100.0", "51.3", "16.9", "03.6")
# The published axes, which show the level of the published results: (data, attack) -> range of accuracies in percent.
_WINDOWS = {
    ("digits", "fgsm"): (80.0, 99.0),
    ("fashion", "fgsm"): (70.0, 90.0),
    ("digits", "pgd"): (25.0, 65.0),
    ("fashion", "pgd"): (0.0, 40.0),
}


def define() -> None:
    """Defines the flags."""
    Data.define()
    FLAGS.set_default("data", "mnist")
    FLAGS.set_default("seed", 1234)
    lottery_flags.define_experiment()
    lottery_flags.define_attack()
    lottery_flags.define_variants()
    with command_line.section("Analysis"):
        flags.DEFINE_bool("table", False, "Write the tables of all data sets instead of figures.")
        flags.DEFINE_integer(
            "step", 30000, "Training step of tables and comparisons; the last one if there are fewer.", 1
        )
        flags.DEFINE_list(
            "labels", ["100.0", "51.3", "16.9", "08.7", "03.6", "01.8"], "Weights remaining in %, to show."
        )
        flags.DEFINE_list("formats", ["svg", "png", "pdf"], "Formats of figures.")
        command_line.define_number(
            "density_width", 0.3, "Largest initial weight of the densities; published: 2.5.", excluded=0
        )
        flags.DEFINE_enum("early_stop_set", "valid", ["valid", "test"], "What early-stopping accuracies are read from.")


def main() -> None:
    """Draws, or writes tables."""
    lottery_flags.translate_dataset()
    lottery_flags.rewind_step()
    lottery_flags.percents()
    shown_labels()
    with command_line.about("formats"):
        trs.evaluation.check_matplotlib()
    strange = [form for form in FLAGS.formats if form not in ("svg", "png", "pdf")]
    if strange:
        raise command_line.BadFlag(f"--formats: expected some of svg, png, pdf. Received: {','.join(strange)}")
    if FLAGS.table:
        tables()
    else:
        figures()


def shown_labels() -> list[str]:
    """Returns --labels as rounds are labelled: `8.7` as `08.7`.

    Raises:
        BadFlag: if they are not percentages.
    """
    found = []
    for word in FLAGS.labels:
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 100:
            raise command_line.BadFlag(
                f"--labels: expected percentages of weights that remain, such as 100.0,51.3,08.7. Received: {word}"
            )
        found.append(f"{value:04.1f}")
    return found


def figures() -> None:
    """Draws the experiments of the flags, all strategies that there are."""
    runs = {}
    for strategy in STRATEGIES:
        try:
            runs[strategy] = tickets.read_rounds(lottery_flags.directory(strategy))
        except FileNotFoundError as error:
            print(f"Warning: without {strategy}: {error}")
    if not runs:
        raise command_line.BadInput(
            f"--base_dir={FLAGS.base_dir}: expected finished rounds of {', '.join(STRATEGIES)}; run "
            "run_lottery_tickets.py with the same flags. Received: none of them"
        )
    directory = lottery_flags.directory("analysis")
    if FLAGS.force and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)

    def paths(name: str) -> list[Path]:
        return [directory / f"{name}.{form}" for form in FLAGS.formats]

    numbers = _numbers(runs, shown_labels())
    last = min(FLAGS.step, max(_last_step(rounds) for rounds in runs.values()))
    window = _WINDOWS.get((lottery_flags.dataset_name(), FLAGS.attack)) if FLAGS.adv_train else None
    windows = {"acc": window if FLAGS.attack == "fgsm" else None, "adv_acc": window, "loss": (0.0, 1.5)}
    attack = _attack_name(FLAGS.attack)
    for column, shown in windows.items():
        ticket_figures.draw_curves(runs, numbers, column, attack, paths(f"test_{column}"), shown, last)
    ticket_figures.draw_early_stopping(runs, attack, paths("test_early_stop_iteration"), FLAGS.early_stop_set)
    ticket_figures.draw_over_sparsity(runs, last, attack, paths("test_over_sparsity"))
    for strategy, rounds in runs.items():
        of_densities = _numbers({strategy: rounds}, _DENSITIES)
        ticket_figures.draw_densities(rounds, of_densities, paths(f"dists_{strategy}"), FLAGS.density_width)
    first = next(iter(runs))
    ticket_figures.draw_layers(runs[first], paths("layers"))
    ticket_figures.draw_pixels(runs[first], numbers, paths("pixels"))
    header, rows = comparison(runs, last)
    ticket_tables.write_table(directory / "comparison", header, rows)
    print(ticket_tables.markdown(header, rows))
    print(f"Figures and tables  {directory}")


def comparison(runs: ticket_figures.Runs, step: int) -> tuple[list[str], list[list[str]]]:
    """Returns the table that compares strategies: accuracies at a step and where the validation loss is least."""
    header = ["remain %", "strategy", "accuracy %", f"under {FLAGS.attack.upper()} %", "early stop", "accuracy % there"]
    header += [f"under {FLAGS.attack.upper()} % there", "overlap of masks"]
    rows = []
    for number in sorted({number for rounds in runs.values() for number in rounds}):
        for strategy, rounds in runs.items():
            if number not in rounds or (number == 0 and strategy != next(iter(runs))):
                continue
            trials = rounds[number]
            row = [trials[0].label, ticket_figures.NAMES[strategy] if number else "dense"]
            for column in ("acc", "adv_acc"):
                row.append(tickets.spread(tickets.at_step(t.curves["test"], column, step) for t in trials).percent())
            stops = tickets.spread(t.curves["valid"]["batch"][tickets.early_stop(t)] for t in trials)
            row.append(f"{stops.mean:.0f} ± {stops.sd:.0f}")
            for column in ("acc", "adv_acc"):
                row.append(tickets.spread(t.curves["test"][column][tickets.early_stop(t)] for t in trials).percent())
            shared = tickets.mask_overlaps(trials)
            rows.append([*row, f"{shared.mean:.3f}" if shared.number else "-"])
    return header, rows


def tables() -> None:
    """Writes one table per data set that has experiments, that of the flags included, and says which are missing."""
    place = Path(FLAGS.base_dir).expanduser()
    written = 0
    for data in dict.fromkeys([*lottery_flags.DATASETS.values(), FLAGS.data]):
        FLAGS["data"].value = data
        dataset, stem = lottery_flags.dataset_name(), lottery_flags.table_name()
        found = {}
        for attack in lottery_flags.ATTACKS:
            for adversarial in (False, True):
                try:
                    directory = lottery_flags.directory("reinit_orig", attack, adversarial)
                    found[attack, adversarial] = tickets.read_rounds(directory)
                except FileNotFoundError as error:
                    if (place / dataset).is_dir():
                        print(f"Warning: {error}")
        if not found:
            continue
        written += 1
        numbers = _numbers({str(key): rounds for key, rounds in found.items()}, shown_labels())
        for name, (header, rows) in {
            stem: table(found, numbers),
            f"{stem}_tickets": last(found, numbers),
        }.items():
            ticket_tables.write_table(place / "tables" / name, header, rows)
            print(f"\n{name}\n\n{ticket_tables.markdown(header, rows)}")
        ticket_figures.draw_training(
            {_training(*key): (key[0], rounds) for key, rounds in _of_each_training(found).items()},
            {name: _attack_name(name) for name in lottery_flags.ATTACKS},
            [place / "tables" / f"{stem}_training.{form}" for form in FLAGS.formats],
        )
    if not written:
        raise command_line.BadInput(
            f"--base_dir={FLAGS.base_dir}: expected experiments of reinit_orig. Received: a folder without any"
        )
    print(f"Tables              {place / 'tables'}")


def table(
    found: dict[tuple[str, bool], dict[int, list[tickets.Round]]], numbers: list[int]
) -> tuple[list[str], list[list[str]]]:
    """Returns the published table: by attack, natural and attacked accuracy of natural / adversarial training."""
    header = ["remain %"]
    for attack in lottery_flags.ATTACKS:
        header += [f"{attack.upper()} natural", f"{attack.upper()} attack"]
    rows = []
    for number in numbers:
        row = [next(rounds[number][0].label for rounds in found.values() if number in rounds)]
        for attack in lottery_flags.ATTACKS:
            for column in ("acc", "adv_acc"):
                cells = []
                for adversarial in (False, True):
                    trials = found.get((attack, adversarial), {}).get(number, [])
                    values = [tickets.at_step(each.curves["test"], column, FLAGS.step) for each in trials]
                    cells.append(tickets.spread(values).percent())
                row.append(" / ".join(cells))
        rows.append(row)
    return header, rows


def last(
    found: dict[tuple[str, bool], dict[int, list[tickets.Round]]], numbers: list[int]
) -> tuple[list[str], list[list[str]]]:
    """Returns a table of what was measured at the end on all test images, PGD beside FGSM, and how masks overlap."""
    header = ["remain %", "training", "accuracy %", "FGSM %", "PGD %", "overlap of trials", "with natural training"]
    rows = []
    for number in numbers:
        for (attack, adversarial), rounds in _of_each_training(found).items():
            if number not in rounds:
                continue
            trials = rounds[number]
            measures = [
                tickets.spread(tickets.final_accuracy(each, under, attack) for each in trials).percent()
                for under in (None, *lottery_flags.ATTACKS)
            ]
            natural = found.get((attack, False), {}).get(number)
            shared = tickets.mask_overlaps(trials)
            beside = tickets.mask_overlaps(trials, natural) if adversarial and natural else None
            rows.append(
                [
                    trials[0].label,
                    _training(attack, adversarial),
                    *measures,
                    f"{shared.mean:.3f}" if shared.number else "-",
                    f"{beside.mean:.3f}" if beside and beside.number else "-",
                ]
            )
    return header, rows


def _of_each_training(
    found: dict[tuple[str, bool], dict[int, list[tickets.Round]]],
) -> dict[tuple[str, bool], dict[int, list[tickets.Round]]]:
    """Returns one experiment of each way of training.

    Natural training is the same whatever it is measured with; the runs measured with FGSM know PGD too.
    """
    measured = next((attack for attack in lottery_flags.ATTACKS if (attack, False) in found), None)
    return {key: rounds for key, rounds in found.items() if key[1] or key[0] == measured}


def _attack_name(attack: str) -> str:
    return trs.evaluation.attack_name(lottery_flags.attack(attack).describe())


def _training(attack: str, adversarial: bool) -> str:
    return attack.upper() if adversarial else "natural"


def _numbers(runs: ticket_figures.Runs, labels: Collection[str]) -> list[int]:
    """Returns the rounds whose sparsity the labels name, or the first and the last if there is none of them."""
    named = {number for rounds in runs.values() for number, trials in rounds.items() if trials[0].label in labels}
    numbers = {number for rounds in runs.values() for number in rounds}
    return sorted(named) if len(named) > 1 else sorted({min(numbers), max(numbers)})


def _last_step(rounds: dict[int, list[tickets.Round]]) -> int:
    return max(int(each.curves["test"]["batch"][-1]) for trials in rounds.values() for each in trials)
