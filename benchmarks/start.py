"""Times `import tf_robust_sparse` after TensorFlow and Keras, in new processes; it should add at most 0.4 s.

python -m benchmarks.start --rounds=7

Python keeps compiled sources in these processes, as it does by default. With PYTHONDONTWRITEBYTECODE, an editable
installation is compiled at each start, which costs four times as much.
"""

import os
import statistics
import subprocess
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 7, "Number of processes.", lower_bound=1)
_CHILD = """
import time
begin = time.perf_counter()
import tensorflow
import keras
middle = time.perf_counter()
import tf_robust_sparse
print(middle - begin, time.perf_counter() - middle)
"""


def main(argv: list[str]) -> None:
    """Imports and prints medians; the first process, which may compile and read from the disk, does not count."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = []
    for _ in range(FLAGS.rounds + 1):
        command = [sys.executable, "-c", _CHILD]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append([float(word) for word in done.stdout.split()])
    base, added = (statistics.median(times) for times in zip(*found[1:], strict=True))
    print(f"TensorFlow and Keras {base:.2f} s, tf_robust_sparse {added:.2f} s more; medians of {FLAGS.rounds}")


if __name__ == "__main__":
    app.run(main)
