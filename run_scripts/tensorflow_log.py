"""Loads TensorFlow without the lines its C++ side logs while it starts; import this before anything that needs it.

TensorFlow 2.21 logs through a library that ignores TF_CPP_MIN_LOG_LEVEL until it is initialised, so these lines are
held back at the file descriptor. Everything else passes, and all of it does with TF_CPP_MIN_LOG_LEVEL=0.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NOISE = re.compile(rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} ")
_NO_GPU = re.compile(rb"E\d{4} .*failed call to cuInit")


def _is_noise(line: bytes) -> bool:
    has_gpu = Path("/proc/driver/nvidia").exists()
    return bool(_NOISE.match(line)) or (not has_gpu and bool(_NO_GPU.match(line)))


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _is_noise(line):
                    os.write(2, line)


# Once TensorFlow is initialised, errors only.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") >= "2" and "tensorflow" not in sys.modules:
    with _without_noise():
        import tensorflow as tf

        tf.config.list_physical_devices()  # the search for GPUs speaks too
