"""Turns lottery ticket experiments into curves, early stopping, weight densities and tables.

    python run_scripts/run_lottery_analysis.py --dataset=digits --attack=pgd --adv_train
    python run_scripts/run_lottery_analysis.py --table

The first draws what run_lottery_tickets.py has finished so far, with the same flags, into
`<base_dir>/<dataset>/<model>/analysis/<attack>/lr-..._l1-..._advtrain-.../`: curves over training steps, measures over
sparsity, early stopping, densities of initial weights, remaining layers and pixels, and `comparison.md`. The second
writes tables of digits, fashion, sample and what --dataset says, natural and adversarial training side by side, into
`<base_dir>/tables/`, as Markdown, CSV and LaTeX, and a figure of accuracies and overlaps of masks by kind of training.
"""

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path

from tf_robust_sparse.cli import command_line, settings
from tf_robust_sparse.cli.sections.lottery import ATTACKS, DATASETS, Attack, Experiment, Images, Variants
from tf_robust_sparse.cli.settings import Settings, setting
from tf_robust_sparse.evaluation import ticket_figures, ticket_tables, tickets
from tf_robust_sparse.evaluation.figure_style import attack_name, check_matplotlib

STRATEGIES = ("reinit_orig", "reinit_rand", "reinit_none")
_DENSITIES = ("100.0", "51.3", "16.9", "03.6")
# The published axes, which show the level of the published results: (data, attack) -> range of accuracies in percent.
_WINDOWS = {
    ("digits", "fgsm"): (80.0, 99.0),
    ("fashion", "fgsm"): (70.0, 90.0),
    ("digits", "pgd"): (25.0, 65.0),
    ("fashion", "pgd"): (0.0, 40.0),
}
_Trained = dict[tuple[str, bool], dict[int, list[tickets.Round]]]  # by attack and adv_train


@dataclasses.dataclass
class Analysis(Settings):
    """What is shown of the experiments."""

    title = "Analysis"

    table: bool = setting(False, "Write the tables of all data sets instead of figures.")
    step: int = setting(30_000, "Training step of tables and comparisons; the last one if there are fewer.", lower=1)
    labels: list[str] = setting(["100.0", "51.3", "16.9", "08.7", "03.6", "01.8"], "Weights remaining in %, to show.")
    formats: list[str] = setting(["svg", "png", "pdf"], "Formats of figures.", choices=("svg", "png", "pdf"))
    density_width: float = setting(0.3, "Largest initial weight of the densities; published: 2.5.", excluded=0)
    early_stop_set: str = setting("valid", "What early-stopping accuracies are read from.", choices=("valid", "test"))

    def check(self) -> None:
        """Checks that figures can be drawn, and what they show."""
        with command_line.about("formats"):
            check_matplotlib()
        self.shown()

    def shown(self) -> list[str]:
        """Returns --labels as rounds are labeled: `8.7` as `08.7`.

        Raises:
            BadFlag: if they are not percentages.
        """
        found = []
        for word in self.labels:
            try:
                value = float(word)
            except ValueError:
                value = -1.0
            if not 0 <= value <= 100:
                raise command_line.BadFlag(
                    f"--labels={word}: expected percentages of weights that remain, such as 100.0,51.3,08.7"
                )
            found.append(f"{value:04.1f}")
        return found

    def paths(self, directory: Path, name: str) -> list[Path]:
        """Returns the files of a figure, one for each format."""
        return [directory / f"{name}.{form}" for form in self.formats]


def define() -> None:
    """Defines the flags."""
    for group in (Images, Experiment, Attack, Variants, Analysis):
        group.define()


def main() -> None:
    """Draws, or writes tables."""
    settings.check()
    if Analysis.read().table:
        tables()
    else:
        figures()


def figures() -> None:
    """Draws the experiments of the flags, all strategies that there are."""
    experiment, analysis = Experiment.read(), Analysis.read()
    runs = {}
    for strategy in STRATEGIES:
        try:
            runs[strategy] = tickets.read_rounds(experiment.directory(strategy))
        except FileNotFoundError as error:
            print(f"Warning: without {strategy}: {error}")
    if not runs:
        raise command_line.BadInput(
            f"--base_dir={experiment.base_dir}: expected finished rounds of {', '.join(STRATEGIES)}; run "
            "run_lottery_tickets.py with the same flags first"
        )
    directory = experiment.directory("analysis")
    if experiment.force and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    numbers = _numbers(runs, analysis.shown())
    step = min(analysis.step, max(_last_step(rounds) for rounds in runs.values()))
    adversarial = experiment.adv_train
    window = _WINDOWS.get((Images.read().published_name, experiment.attack)) if adversarial else None
    windows = {"acc": window if experiment.attack == "fgsm" else None, "adv_acc": window, "loss": (0.0, 1.5)}
    attack = _attack_name(experiment.attack)
    for column, shown in windows.items():
        paths = analysis.paths(directory, f"test_{column}")
        ticket_figures.draw_curves(runs, numbers, column, attack, paths, shown, step)
    paths = analysis.paths(directory, "test_early_stop_iteration")
    ticket_figures.draw_early_stopping(runs, attack, paths, analysis.early_stop_set)
    ticket_figures.draw_over_sparsity(runs, step, attack, analysis.paths(directory, "test_over_sparsity"))
    for strategy, rounds in runs.items():
        of_densities = _numbers({strategy: rounds}, _DENSITIES)
        paths = analysis.paths(directory, f"dists_{strategy}")
        ticket_figures.draw_densities(rounds, of_densities, paths, analysis.density_width)
    first = next(iter(runs))
    ticket_figures.draw_layers(runs[first], analysis.paths(directory, "layers"))
    ticket_figures.draw_pixels(runs[first], numbers, analysis.paths(directory, "pixels"))
    header, rows = comparison(runs, step, experiment.attack.upper())
    ticket_tables.write_table(directory / "comparison", header, rows)
    print(ticket_tables.markdown(header, rows))
    print(f"Figures and tables  {directory}")


def comparison(runs: ticket_figures.Runs, step: int, attack: str) -> tuple[list[str], list[list[str]]]:
    """Returns the table that compares strategies: accuracies at a step and where the validation loss is least."""
    header = ["remain %", "strategy", "accuracy %", f"under {attack} %", "early stop", "accuracy % there"]
    header += [f"under {attack} % there", "overlap of masks"]
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
    experiment, analysis, chosen = Experiment.read(), Analysis.read(), Images.read()
    place = experiment.folder / "tables"
    written = 0
    for data in dict.fromkeys([*DATASETS.values(), chosen.data]):
        images = dataclasses.replace(chosen, data=data)
        found: _Trained = {}
        for attack in ATTACKS:
            for adversarial in (False, True):
                other = dataclasses.replace(experiment, attack=attack, adv_train=adversarial)
                try:
                    found[attack, adversarial] = tickets.read_rounds(other.directory("reinit_orig", images))
                except FileNotFoundError as error:
                    if (experiment.folder / images.published_name).is_dir():
                        print(f"Warning: {error}")
        if not found:
            continue
        written += 1
        name = experiment.table_name(images)
        numbers = _numbers({str(key): rounds for key, rounds in found.items()}, analysis.shown())
        for part, (header, rows) in (
            (name, table(found, numbers, analysis.step)),
            (f"{name}_tickets", last(found, numbers)),
        ):
            ticket_tables.write_table(place / part, header, rows)
            print(f"\n{part}\n\n{ticket_tables.markdown(header, rows)}")
        ticket_figures.draw_training(
            {_training(*key): (key[0], rounds) for key, rounds in _of_each_training(found).items()},
            {name: _attack_name(name) for name in ATTACKS},
            analysis.paths(place, f"{name}_training"),
        )
    if not written:
        raise command_line.BadInput(
            f"--base_dir={experiment.base_dir}: expected experiments of reinit_orig; run run_lottery_tickets.py first"
        )
    print(f"Tables              {place}")


def table(found: _Trained, numbers: list[int], step: int) -> tuple[list[str], list[list[str]]]:
    """Returns the published table: by attack, natural and attacked accuracy of natural / adversarial training."""
    header = ["remain %"]
    for attack in ATTACKS:
        header += [f"{attack.upper()} natural", f"{attack.upper()} attack"]
    rows = []
    for number in numbers:
        row = [next(rounds[number][0].label for rounds in found.values() if number in rounds)]
        for attack in ATTACKS:
            for column in ("acc", "adv_acc"):
                cells = []
                for adversarial in (False, True):
                    trials = found.get((attack, adversarial), {}).get(number, [])
                    values = [tickets.at_step(each.curves["test"], column, step) for each in trials]
                    cells.append(tickets.spread(values).percent())
                row.append(" / ".join(cells))
        rows.append(row)
    return header, rows


def last(found: _Trained, numbers: list[int]) -> tuple[list[str], list[list[str]]]:
    """Returns a table of what was measured at the end on all test images, PGD next to FGSM, and how masks overlap."""
    header = ["remain %", "training", "accuracy %", "FGSM %", "PGD %", "overlap of trials", "with natural training"]
    rows = []
    for number in numbers:
        for (attack, adversarial), rounds in _of_each_training(found).items():
            if number not in rounds:
                continue
            trials = rounds[number]
            measures = [
                tickets.spread(tickets.final_accuracy(each, under, attack) for each in trials).percent()
                for under in (None, *ATTACKS)
            ]
            natural = found.get((attack, False), {}).get(number)
            shared = tickets.mask_overlaps(trials)
            overlap = tickets.mask_overlaps(trials, natural) if adversarial and natural else None
            rows.append(
                [
                    trials[0].label,
                    _training(attack, adversarial),
                    *measures,
                    f"{shared.mean:.3f}" if shared.number else "-",
                    f"{overlap.mean:.3f}" if overlap and overlap.number else "-",
                ]
            )
    return header, rows


def _of_each_training(found: _Trained) -> _Trained:
    """Returns one experiment of each way of training.

    Natural training is the same whatever it is measured with; the runs measured with FGSM know PGD too.
    """
    measured = next((attack for attack in ATTACKS if (attack, False) in found), None)
    return {key: rounds for key, rounds in found.items() if key[1] or key[0] == measured}


def _attack_name(attack: str) -> str:
    return attack_name(Attack.read().build(attack).describe())


def _training(attack: str, adversarial: bool) -> str:
    return attack.upper() if adversarial else "natural"


def _numbers(runs: ticket_figures.Runs, labels: Collection[str]) -> list[int]:
    """Returns the rounds whose sparsity the labels name, or the first and the last if there is none of them."""
    named = {number for rounds in runs.values() for number, trials in rounds.items() if trials[0].label in labels}
    numbers = {number for rounds in runs.values() for number in rounds}
    return sorted(named) if len(named) > 1 else sorted({min(numbers), max(numbers)})


def _last_step(rounds: dict[int, list[tickets.Round]]) -> int:
    return max(int(each.curves["test"]["batch"][-1]) for trials in rounds.values() for each in trials)
