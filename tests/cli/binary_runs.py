"""A tiny run of binary sub-networks, and configurations as the published code has them."""

from tf_robust_sparse.cli import binary, settings

BINARY = "run_binary_subnetworks"
FEW = (
    *("--data=fashion_mnist_sample", "--model=resnet18_p1", "--train_examples=72", "--test_examples=32"),
    *("--batch_size=32", "--epochs=1", "--pgd_iters=1", "--pgd_restarts=1", "--epsilon=0.1", "--step_size=0.05"),
    *("--num_steps=1", "--val_num_steps=1", "--augmentation=none", "--prune_rate=0.1", "--pr_scale=0.1"),
    *("--score_init_scale=0.01", "--fan-scaled-score-mode=none", "--end-with-bn"),
)


# What the published configurations look like, written down once more.
YAML = """
# Architecture
model_type: cResNet34
dataset: CIFAR10
num_classes: 10
log_dir: ./runs/somewhere/
normalize: cifar10
valid_ratio: 0.02
optimizer: sgd
lr: 0.1
lr_policy: cosine_lr
alpha: 0
epochs: 400
weight_decay: 0.0005
momentum: 0.9
batch_size: 256
trainer: adv_step
attack: {name: PGD, step_size: 2, threshold: 8, iter_num: 10}
conv_type: SubnetConv
bn_type: NonAffineBatchNorm
freeze_weights: True
init: binary
mode: fan_in
nonlinearity: relu
scale_fan: True
workers: 20
seed: 1234
"""


# What its aa-standard.yaml look like.
EVALUATION = """
model_type: cResNet34
dataset: Cifar10
num_classes: 10
log_dir: ./runs/cifar10-resnet34/aa
normalize: cifar10
batch_size: 512
attack: {norm: Linf, threshold: 8}
subset: test
conv_type: SubnetConv
bn_type: NonAffineBatchNorm
freeze_weights: True
mode: fan_in
nonlinearity: relu
scale_fan: True
workers: 20
seed: 1234
"""


def meaning(parse, *arguments):
    flags = parse(BINARY, *arguments)
    binary.originals.translate()
    settings.check()
    return flags
