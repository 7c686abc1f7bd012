"""Times a training step of MTL-IBP against the same step on auto_LiRPA, as the public code of the method is built.

    git clone https://github.com/Verified-Intelligence/auto_LiRPA
    python -m benchmarks.mtl_ibp --reference=auto_LiRPA --models=small_cnn,large_cnn --rounds=5

A step is PGD with eight steps in a ball of 2.1 times the radius, interval bounds over the ball of the radius, both
losses, the gradient and Adam. Ours is `RobustModel.train_on_batch` with `objectives.MTLIBP`. The flags, the turns of
the two and what comes with PyTorch are those of `benchmarks.certify`.
"""

from collections.abc import Callable

import numpy as np
from absl import app, flags

from benchmarks import certify

FLAGS = flags.FLAGS
ALPHA, SCALE, STEPS = 0.004, 2.1, 8


def main(argv: list[str]) -> None:
    """Prints the times and their ratio."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    certify.prepare()
    for name in FLAGS.models:
        x, y = certify.random_images(FLAGS.batch_size)
        contenders = {"ours": our_step(name, x, y)}
        if FLAGS.reference:
            contenders |= {mode: their_step(name, x, y, mode) for mode in ("patches", "matrix")}
        certify.compared(f"{name}, MTL-IBP step", contenders)


def our_step(name: str, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """A step as users train."""
    import keras

    import tf_robust_sparse as trs

    radius = SCALE * certify.EPSILON
    attack = trs.attacks.LinfPGD(radius, step_size=0.25 * radius, num_steps=STEPS)
    trained = trs.RobustModel(certify.model(name), trs.objectives.MTLIBP(attack, certify.EPSILON, ALPHA))
    trained.compile(keras.optimizers.Adam(5e-4))
    return lambda: trained.train_on_batch(x, y)


def their_step(name: str, x: np.ndarray, y: np.ndarray, mode: str) -> Callable[[], object]:
    """The step in PyTorch; `mode` is how auto_LiRPA bounds convolutions."""
    import torch
    import torch.nn.functional as F

    peer = certify.Reference(certify.model(name), x.shape, "adaptive", mode)
    optimizer = torch.optim.Adam(peer.model.parameters(), 5e-4)
    around, rows = peer.ball(x, certify.EPSILON), peer.rows(y)
    labels = torch.from_numpy(y)
    pixels, radius = around.data, SCALE * certify.EPSILON

    def attacked() -> torch.Tensor:
        found = (pixels + radius * (2 * torch.rand_like(pixels) - 1)).clamp(0, 1)
        for _ in range(STEPS):
            found.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(peer.model(found), labels), found)
            found = found.detach() + 0.25 * radius * gradient.sign()
            found = torch.minimum(torch.maximum(found, pixels - radius), pixels + radius).clamp(0, 1)
        return found

    def step() -> float:
        found = attacked()
        optimizer.zero_grad()
        by_attack = F.cross_entropy(peer.model(found), labels)
        lower, _ = peer.model.compute_bounds(x=(around,), IBP=True, C=rows, method=None)
        by_bounds = F.cross_entropy(F.pad(-lower, (1, 0)), torch.zeros(len(lower), dtype=torch.int64))
        loss = ALPHA * by_bounds + (1 - ALPHA) * by_attack
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


if __name__ == "__main__":
    app.run(main)
