"""Names of the scripts of lottery tickets, and a tiny run."""

RUN, ANALYSIS, GRID = "run_lottery_tickets", "run_lottery_analysis", "run_lottery_grid"
TINY = (
    *("--dataset=sample", "--test_examples=50", "--valid_size=50", "--batch_size=30"),
    *("--train_iters=20", "--eval_every=10", "--prune_iters=2", "--processes=1"),
)
NAME = "sample/dense-300-100/reinit_orig/fgsm/lr-0.0012_l1-0.0_advtrain-true"
