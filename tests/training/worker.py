"""One process of a training run over several: `python -m tests.training.worker DIRECTORY`.

Trains a tiny network for two epochs, through `RobustModel.fit` alone, and leaves its variables and history in
`DIRECTORY/worker<index>.npz` and `.json`, its checkpoints in `checkpoints<index>`. Without `TF_CONFIG` it is alone.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, data, objectives, training
from tf_robust_sparse.sparsity import ConnectivitySampling


def main(directory):
    workers = "TF_CONFIG" in os.environ
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if workers else 0
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers else tf.distribute.get_strategy()
    keras.utils.set_random_seed(0)
    attack = attacks.L2PGD(epsilon=0.5, step_size=0.25, num_steps=2)
    with strategy.scope():
        network = tiny_network(connectivity=0.05, synchronized=workers)
        sparsifier = ConnectivitySampling(0.1, noise_scaling=0.0, seed=3)
        model = training.RobustModel(network, objectives.Natural(), sparsifier, validation_attack=attack)
        model.compile(training.sgdw(0.05, 5e-4), metrics=["accuracy"])
    connections = training.ConnectivityLogger(network, sparsifier)
    checkpoints = training.Checkpoints(
        directory / f"checkpoints{index}",
        {"best_robust": "val_robust_accuracy"},
        {"seed": 0},
        connections,
        sparsifier,
        writes=index == 0,
    )
    model.fit(
        data.train_dataset(*tiny_images(64), batch_size=16, flip=False, epochs=2),
        validation_data=data.test_dataset(*tiny_images(24, seed=1), batch_size=8),
        epochs=2,
        steps_per_epoch=4,
        verbose=0,
        callbacks=[training.StopOnNaN(), connections, checkpoints],
    )
    uneven = model.evaluate(data.test_dataset(*tiny_images(21, seed=1), batch_size=8), verbose=0, return_dict=True)
    assert all(isinstance(value, float) for value in uneven.values())
    variables = [*network.variables, *model.optimizer.variables]
    np.savez(directory / f"worker{index}.npz", **{str(i): np.asarray(v) for i, v in enumerate(variables)})
    (directory / f"worker{index}.json").write_text(json.dumps([*checkpoints.state["history"], uneven]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
