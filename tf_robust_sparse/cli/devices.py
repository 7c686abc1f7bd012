"""Which GPUs of this machine a run may use, by the numbers that the published command lines give them."""

import tensorflow as tf
from absl import flags

from tf_robust_sparse.cli import run_directory
from tf_robust_sparse.cli.command_line import BadFlag

FLAGS = flags.FLAGS


def choose(name: str, replicas: bool = False, fewer: bool = False, quiet: bool = False) -> None:
    """Hides all GPUs but those that a flag lists; must come before anything else that touches devices.

    A machine without a GPU gets a note. The flag is not recorded, because it says nothing about the run.

    Args:
        name: A flag such as --multigpu=0,1; without a value nothing happens.
        replicas: Whether several GPUs train together, as --strategy=mirrored does, unless --strategy says otherwise.
        fewer: Whether numbers that this machine does not have are passed over.
        quiet: Whether the note is left out, because another process prints it.

    Raises:
        BadFlag: if the flag lists no numbers, or GPUs that this machine does not have.
    """
    run_directory.leave_out(name)
    text = FLAGS[name].value
    if text is None:
        return
    words = str(text).split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise BadFlag(f"--{name}={text}: expected numbers of GPUs, such as 0 or 0,1")
    numbers = sorted({int(word) for word in words})
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and quiet:
        return
    if not gpus:
        print(f"Note: --{name}={text} has no effect here, because this machine has no GPU")
        return
    there = [number for number in numbers if number < len(gpus)]
    if not there or (len(there) < len(numbers) and not fewer):
        every = ",".join(map(str, range(len(gpus))))
        raise BadFlag(
            f"--{name}={text}: expected numbers below {len(gpus)}, the GPUs of this machine; pass --{name}={every} "
            "for all of them"
        )
    tf.config.set_visible_devices([gpus[number] for number in there], "GPU")
    if replicas and len(there) > 1 and not FLAGS["strategy"].present:
        FLAGS["strategy"].value = "mirrored"


def hide_all() -> None:
    """Hides every GPU; must come before anything else that touches devices."""
    tf.config.set_visible_devices([], "GPU")
