"""The command lines of README, docs, flagfiles, help texts and the READMEs of the originals, as a shell reads them."""

import ast
import collections
import re
import subprocess
from typing import NamedTuple

from tests.cli.conftest import ROOT
from tests.test_docs import PAGES
from tf_robust_sparse.cli.main import COMMANDS

# Command lines that the READMEs and scripts of the five originals show, but for the name of the script.
ORIGINALS = r"""
CONNECTIVITY="--data cifar10 --n_classes 10 --model resnet50 --objective at"
python run_scripts/run_connectivity_sampling.py $CONNECTIVITY -s -pc 0.01 -wd 1e-3
python run_scripts/run_connectivity_sampling.py $CONNECTIVITY -wd 1e-3
python run_scripts/run_connectivity_sampling.py --data cifar100 --n_classes 100 --model vgg16 \
    --objective trades -s -pc 0.1
python run_scripts/run_foolbox_eval.py --data "cifar10" --n_classes 10 --model "resnet50" --objective "at" \
    --sparse_train --connectivity 0.01 --pgd_iters 50 --pgd_restarts 10

HYDRA="--arch wrn_28_4 --configs configs.yml --trainer adv --val_method adv"
python run_scripts/run_hydra.py --arch wrn_28_4 --exp-mode pretrain --configs configs/configs.yml --trainer adv \
    --val_method adv --k 1.0 --exp-name dense
python run_scripts/run_hydra.py $HYDRA --exp-mode prune --k 0.01 --scaled-score-init --exp-name pruned \
    --source-net ./trained_models/dense/pretrain/latest_exp/checkpoint/checkpoint.pth.tar --epochs 20 --save-dense
python run_scripts/run_hydra.py $HYDRA --exp-mode finetune --k 0.01 --exp-name tuned \
    --source-net ./trained_models/pruned/prune/latest_exp/checkpoint/checkpoint.pth.tar --save-dense --lr 0.01
python run_scripts/run_hydra.py $HYDRA --exp-mode finetune --k 0.01 --exp-name lwm \
    --source-net ./trained_models/dense/pretrain/latest_exp/checkpoint/checkpoint.pth.tar --save-dense --lr 0.01 \
    --scaled-score-init
python run_scripts/run_hydra.py --arch wrn_28_4 --configs configs.yml --trainer adv --val-method adv --k 0.5 \
    --source-net ./trained_models/dense/pretrain/latest_exp/checkpoint/checkpoint.pth.tar --exp-name inside

python run_scripts/run_binary_subnetworks.py --config configs/advprune/cifar10/resnet34/resnet34-binary-weights.yaml \
    --model_name rn34-cifar10-quick-start --log-dir out --multigpu 0,1 --prune-rate 0.01 --pr-scale 0.1 --epochs 400 \
    --end-with-bn --score-init-scale 0.01 --fan-scaled-score-mode none;
python run_scripts/run_binary_subnetworks.py --config configs/advprune/cifar10/resnet34/aa-standard.yaml \
    --model_name rn34-cifar10-quick-start --model_type cResNet34 --multigpu 0,1 --prune-rate 0.01 --pr-scale 0.1 \
    --pretrained out/resnet34-binary-weights/rn34-cifar10-quick-start/prune_rate=0.01/0/checkpoints/model_best.pth;

RUN="python run_scripts/run_neural_pruning.py"
$RUN --net lenet_conv --mode base --data mnist
$RUN --net lenet_conv --mode bbd --eps=0.3 --step_size=0.01 --adv_train=True \
    --pgd_steps=20 --vulnerability=True --data mnist --n_epochs 200 --beta_weight=4 --lambda_weight=0.001
for data in cifar10 cifar100; do
    $RUN --net vgg16 --mode base --data $data
    $RUN --net vgg16 --mode bbd --eps=0.03 --step_size=0.007 --adv_train=True \
        --pgd_steps=10 --vulnerability=True --data $data --n_epochs 200 --beta_weight=2 --lambda_weight=0.0001
    $RUN --net vgg16 --mode bbd --eval_mode test --data $data --adv_train=True
done
FLAGS="--mode bbd --eval_mode attack --white_box=True --attack_source base --vulnerability_type=expected --pgd_steps 40"
$RUN --net lenet_conv $FLAGS --eps 0.3 --step_size 0.01 --data mnist --adv_train=True
$RUN --net vgg16 $FLAGS --eps 0.03 --step_size 0.007 --data cifar10 --adv_train=True
$RUN --net lenet_conv --mode bbd --eval_mode test --data mnist --adv_train=True

python run_scripts/run_lottery_tickets.py --trials=1 --learning_rate=0.001 --attack=pgd
"""
# A shell runs the lines of a page, where `python` and `trs` are functions that write down their words.
_SHELL = r"""
python() { printf '%s\x1f' "$@"; printf '\x1e'; }
trs() { python trs "$@"; }
"""
_NEXT = "next"  # between two blocks


class Line(NamedTuple):
    """A command line: the page and the block of it where it stands, the script it starts, and its flags."""

    page: str
    block: int
    script: str
    words: tuple[str, ...]

    def __str__(self):
        return f"{self.page}-{self.block}: {self.script} {' '.join(self.words)}"


def shell_words(text):
    """Yields the words of each command that a shell would start."""
    text = _SHELL + text.replace(".venv/bin/python", "python").replace("python3", "python")
    done = subprocess.run(["/bin/bash", "-c", text], env={"PATH": ""}, capture_output=True, text=True)
    for record in done.stdout.split("\x1e")[:-1]:
        yield record.split("\x1f")[:-1]


def lines(page, blocks):
    """Yields the commands of this project among those of some blocks; `...` stands for what a reader fills in."""
    number, scripts = 0, {script for _, script in COMMANDS.values()}
    for first, *words in shell_words(f"\npython {_NEXT}\n".join(blocks)):
        number += first == _NEXT
        script = re.sub(r"run_scripts/(\w+)\.py", r"\1", first)
        if first == "trs":
            length = 2 if " ".join(words[:2]) in COMMANDS else 1
            script, words = COMMANDS.get(" ".join(words[:length]), ("", ""))[1], words[length:]
        if script in scripts and words and not any("..." in word for word in words):
            yield Line(page, number, script, tuple(words))


def documented():
    """Yields every command line."""
    for page in PAGES:
        text = page.read_text()
        found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        blocks = [block for language, block in found if language in ("", "bash", "sh")]
        blocks += re.findall(r"`((?:python run_scripts/|trs \w+ --)[^`]*)`", text)
        yield from lines(page.stem, [block for block in blocks if re.search(r"run_scripts/|\btrs ", block)])
    for path in sorted((ROOT / "flags").rglob("*.flags")):
        yield from lines(path.stem, ["\n".join(re.findall(r"^# .*?(python run_.*)", path.read_text(), re.M))])
    for path in sorted((ROOT / "tf_robust_sparse/cli/commands").glob("*.py")):
        help_text = ast.get_docstring(ast.parse(path.read_text()))
        yield from lines(f"{path.stem} --help", ["\n".join(re.findall(r"^    (\S.*|    .*)", help_text, re.M))])
    yield from lines("originals", ORIGINALS.split("\n\n"))


def distinct():
    """Yields each line once: a block repeats what it needs, but not one line that stands elsewhere."""
    found = list(dict.fromkeys(documented()))
    size = collections.Counter((line.page, line.block) for line in found)
    seen = set()
    for line in found:
        repeats = size[line.page, line.block] > 1 and not line.page.endswith("--help")
        if repeats or (line.script, line.words) not in seen:
            yield line
        seen.add((line.script, line.words))


LINES = list(distinct())
