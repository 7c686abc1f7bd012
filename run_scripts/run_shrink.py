"""Makes a network smaller: without the channels and units that cannot influence its output."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import shrink

if __name__ == "__main__":
    command_line.run(shrink)
