"""Copies the images of ImageNet out of a set that TensorFlow Datasets prepared, into folders of classes."""

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.commands import unpack_imagenet

if __name__ == "__main__":
    command_line.run(unpack_imagenet)
