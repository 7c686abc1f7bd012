"""Loads TensorFlow without the lines that its C++ side logs while it starts; nothing else is imported before this.

TensorFlow 2.21 logs through a library that ignores TF_CPP_MIN_LOG_LEVEL until it is initialized, so these lines are
held back at the file descriptor. Everything else passes, and all of it does if TF_CPP_MIN_LOG_LEVEL is set to 0 or 1.
The search for GPUs, at the first operation, logs, too: `quiet` does it under the same cover.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} |fully_quantize: |INFO: Created TensorFlow Lite"
)
_NO_GPU = re.compile(rb"E\d{4} .*failed call to cuInit")


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Holds back what TensorFlow's C++ side logs inside the block, but for errors."""
    given = os.environ.get(_LEVEL)
    if (given or "2") < "2":
        yield
        return
    os.environ[_LEVEL] = given or "2"  # once TensorFlow is initialized, errors only
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(stderr, 2)
                held.seek(0)
                for line in held:
                    if not _is_noise(line):
                        os.write(2, line)
    finally:
        os.close(stderr)
        if given is None:
            del os.environ[_LEVEL]


def _is_noise(line: bytes) -> bool:
    has_gpu = Path("/proc/driver/nvidia").exists()
    return bool(_NOISE.match(line)) or (not has_gpu and bool(_NO_GPU.match(line)))


def quiet() -> None:
    """Holds back what TensorFlow logs when it first looks for GPUs; call it right after the import.

    The commands of this package do so. Errors still show, and everything does if `TF_CPP_MIN_LOG_LEVEL` is 0 or 1.

    ```python
    import tf_robust_sparse as trs

    trs.quiet()
    ```
    """
    import tensorflow

    with without_noise():
        tensorflow.config.list_physical_devices()


if "tensorflow" not in sys.modules:
    with without_noise():
        import tensorflow  # noqa: F401
