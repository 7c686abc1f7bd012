"""Measures branch and bound: how much it decides that alpha-CROWN and attacks leave open, and how fast.

    python -m benchmarks.branch_and_bound --weights_dir=robust-weights --data_dir=DIR --output_dir=runs/complete

For each of --networks (`public_networks.py`, or network.keras of --data) and the first test images: clean accuracy, the
upper bound by AutoAttack, the share that alpha-CROWN verifies, and what branch and bound verifies, falsifies and leaves
open within --seconds for each image, with images decided per second. The tables in --output_dir make it resumable:
with --max_examples a run decides only the first images, and a longer one goes on from there.
"""

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", ["cifar_cnn_a_adv"], "Names of public networks, or network.keras files of --data.")
flags.DEFINE_string("weights_dir", None, "Folder of the public networks.")
flags.DEFINE_string("data", "mnist", "Data set of network.keras files.")
flags.DEFINE_string("epsilon", "0.1", "Radius for network.keras files, in pixels of [0, 1].")
flags.DEFINE_string("data_dir", None, "Folder of the data sets.", required=True)
flags.DEFINE_integer("images", 100, "Test images.", 1)
flags.DEFINE_integer("max_examples", None, "Decide at most so many of them in this run.", 1)
flags.DEFINE_float("seconds", 20.0, "Longest time for an image.", 0)
flags.DEFINE_integer("max_nodes", 1_000_000, "Most parts of an image.", 0)
flags.DEFINE_bool("attack", True, "Whether to run AutoAttack.")
flags.DEFINE_string("output_dir", None, "Where tables and records are written.", required=True)


def main(argv: list[str]) -> None:
    """Measures each network."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    for name in FLAGS.networks:
        record = measured(name)
        (Path(FLAGS.output_dir) / f"{record['network']}.json").write_text(json.dumps(record, indent=1))
        print(
            " ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in record.items()
            )
        )


def read(name: str) -> tuple[Any, np.ndarray, np.ndarray, float]:
    """Returns the network, its images and labels, and the radius."""
    import tf_robust_sparse as trs
    from benchmarks import public_networks

    is_public = name in public_networks.NETWORKS
    data, _, _, epsilon = public_networks.NETWORKS[name] if is_public else (FLAGS.data, None, None, 0.0)
    images = trs.data.load(data, Path(FLAGS.data_dir) / data)
    x, y = np.asarray(images.test_images[: FLAGS.images]), np.asarray(images.test_labels[: FLAGS.images], np.int64)
    if is_public:
        network = public_networks.read(Path(FLAGS.weights_dir) / f"{name}.npz", x.shape[1:])
    else:
        network, epsilon = trs.load_network(name), float(Fraction(FLAGS.epsilon))
    return network, x.astype(np.float32) / 255, y, epsilon


def measured(name: str) -> dict[str, Any]:
    """Returns the record of a network."""
    import tf_robust_sparse as trs

    network, x, y, epsilon = read(name)
    folder = Path(FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    label = Path(name).parent.name if name.endswith(".keras") else name
    record: dict[str, Any] = {"network": label, "epsilon": epsilon}

    def show(row: Any) -> None:
        print(f"{row.image} {row.status} {row.margin:.4f}, {row.nodes} parts, {row.seconds:.2f} s", flush=True)

    rows = trs.certify.branch_and_bound(
        *(network, x, y, epsilon, folder / f"{label}.tsv"),
        **{"seconds": FLAGS.seconds, "max_nodes": FLAGS.max_nodes, "max_examples": FLAGS.max_examples},
        progress=show,
    )
    x, y = x[: len(rows)], y[: len(rows)]
    counts = {status: sum(row.status == status for row in rows) for status in ("verified", "falsified", "unknown")}
    spent = sum(row.seconds for row in rows)
    record |= {"images": len(rows), "clean": sum(row.prediction == row.label for row in rows), **counts}
    record |= {"seconds_per_image": spent / len(rows), "verified_per_second": counts["verified"] / spent}
    record["parts"] = sum(row.nodes for row in rows)
    begin = time.perf_counter()
    alpha = trs.certify.verify_images(network, x, y, epsilon, "alpha-crown", batch_size=10)
    record["alpha_crown"] = sum(row.verified for row in alpha)
    record["alpha_crown_seconds_per_image"] = (time.perf_counter() - begin) / len(rows)
    if FLAGS.attack:
        attack = trs.evaluation.AutoAttack(network, "Linf", epsilon, batch_size=len(x), verbose=False)
        stands = attack.run_standard_evaluation(x, y)["broken_by"] == -1
        record["auto_attack"] = int(np.sum(stands))
        verified = np.array([row.verified for row in rows])
        assert not (verified & ~stands).any(), "an attack breaks a verified image"
    return record


if __name__ == "__main__":
    app.run(main)
