"""Runs the experiments of the lottery ticket paper one after the other, and the analysis of what is finished.

    python run_scripts/run_lottery_grid.py --flagfile=flags/lottery_grid.flags --data_dir=DIR

Every combination of data set, strategy, attack and way of training is one run of run_lottery_tickets.py. Finished ones
are not run again and interrupted ones go on, so that the same command goes on with an interrupted grid.
"""

import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_scripts import command_line  # isort: skip

from absl import flags

import tf_robust_sparse as trs

FLAGS = flags.FLAGS
_SCRIPTS = Path(__file__).parent
_SET_HERE = ("dataset", "experiment", "attack", "adv_train", "base_dir", "data_dir", "resume", "force", "l1_reg")

with command_line.section("Grid"):
    flags.DEFINE_list("datasets", ["digits", "fashion"], "Values of --dataset.")
    flags.DEFINE_list("experiments", ["reinit_orig", "reinit_rand", "reinit_none"], "Values of --experiment.")
    flags.DEFINE_list("attacks", ["fgsm", "pgd"], "Values of --attack.")
    flags.DEFINE_list("training", ["natural", "adversarial"], "Without --adv_train, and with it.")
    flags.DEFINE_list("l1_regs", ["0.0"], "Values of --l1_reg.")
    flags.DEFINE_list("data_dirs", [], "Folder of each data set, in their order; by default the usual places.")
    flags.DEFINE_string("options", "", "Further flags of run_lottery_tickets.py, the same for every run.")
    flags.DEFINE_string("base_dir", "./output", "Folder of all experiments.")
    flags.DEFINE_bool("analysis", True, "Draw figures and tables of each data set when its runs are finished.")


def main() -> None:
    """Runs what is missing."""
    options = shlex.split(FLAGS.options)
    for word in options:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if name in _SET_HERE:
            raise command_line.BadFlag(f"--options: expected no --{name}, which the grid sets. Received: {word}")
    _check("experiments", trs.training.STRATEGIES)
    _check("attacks", ("fgsm", "pgd"))
    _check("training", ("natural", "adversarial"))
    if FLAGS.data_dirs and len(FLAGS.data_dirs) != len(FLAGS.datasets):
        raise command_line.BadFlag(
            f"--data_dirs: expected one for each of --datasets={','.join(FLAGS.datasets)}. "
            f"Received: {','.join(FLAGS.data_dirs)}"
        )
    for place, dataset in enumerate(FLAGS.datasets):
        data_dir = [f"--data_dir={FLAGS.data_dirs[place]}"] if FLAGS.data_dirs else []
        for experiment in FLAGS.experiments:
            for l1 in FLAGS.l1_regs:
                for attack in FLAGS.attacks:
                    for training in FLAGS.training:
                        chosen = [f"--dataset={dataset}", f"--experiment={experiment}", f"--attack={attack}"]
                        chosen += [f"--l1_reg={l1}", f"--{'' if training == 'adversarial' else 'no'}adv_train"]
                        _run("run_lottery_tickets", [*chosen, *data_dir, *options, "--resume"])


def _run(script: str, arguments: list[str]) -> None:
    command = [str(_SCRIPTS / f"{script}.py"), *arguments, f"--base_dir={FLAGS.base_dir}"]
    print("\n" + shlex.join(["python", f"run_scripts/{script}.py", *command[1:]]), flush=True)
    done = subprocess.run([sys.executable, *command], check=False)
    if done.returncode < 0 or done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise command_line.BadInput(f"{script}: expected a run that ends well. Received: exit code {done.returncode}")


def _check(name: str, known: tuple[str, ...]) -> None:
    strange = [value for value in FLAGS[name].value if value not in known]
    if strange or not FLAGS[name].value:
        raise command_line.BadFlag(f"--{name}: expected some of {', '.join(known)}. Received: {FLAGS[name].value}")


if __name__ == "__main__":
    command_line.run(main, "finished rounds are kept; the same command goes on")
