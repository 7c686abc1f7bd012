"""Flags of scripts that make another form of a network and measure how long both take."""

from pathlib import Path

from absl import flags

from tf_robust_sparse.cli import command_line

FLAGS = flags.FLAGS


def define(batch_sizes: str = "1,64") -> None:
    """Defines --network, and which latencies are measured."""
    with command_line.section("Network"):
        flags.DEFINE_string("network", None, "Directory of a run, network.keras or a .trs file.")
    with command_line.section("Latency"):
        flags.DEFINE_list(
            "latency_batch_sizes", batch_sizes.split(","), "Batch sizes to measure; an empty list measures none."
        )
        command_line.define_number("latency_seconds", 1.0, "How long each network runs per batch size.", excluded=0)


def batch_sizes() -> list[int]:
    """Returns the batch sizes to measure."""
    sizes = [size.strip() for size in FLAGS.latency_batch_sizes if size.strip()]
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise command_line.BadFlag(f"--latency_batch_sizes={','.join(sizes)}: expected positive integers, such as 1,64")
    return [int(size) for size in sizes]


def directory() -> Path:
    """Returns where to write, which is not where the network is."""
    for name in ("network", "output_dir"):
        if not FLAGS[name].value:
            what = "the directory of a run" if name == "network" else "a directory to write to"
            raise command_line.BadFlag(f"--{name}: expected {what}. Received: no such flag")
    chosen, given = Path(FLAGS.output_dir).expanduser(), Path(FLAGS.network).expanduser()
    if chosen.resolve() in (given.resolve(), given.resolve().parent):
        raise command_line.BadFlag(
            f"--output_dir={chosen}: expected another directory than that of --network. Received: the same"
        )
    return chosen
