"""Builds the engine's kernels where a C compiler is found, and packs the flagfiles; all else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ENGINE = "tf_robust_sparse/engine"


class BuildWithFlagfiles(build_py):
    """Copies `flags/` into the package, where `--flagfile=NAME` finds them; an editable install reads the originals."""

    def run(self):
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("flags", Path(self.build_lib, "tf_robust_sparse", "flagfiles"), dirs_exist_ok=True)


setup(
    cmdclass={"build_py": BuildWithFlagfiles},
    ext_modules=[
        Extension(
            "tf_robust_sparse.engine._kernels",
            [f"{ENGINE}/kernels.c"],
            depends=[f"{ENGINE}/{name}.h" for name in ("plan", "threads", "pack", "kernels", "operations")],
            extra_compile_args=["-O3", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,  # without it sparse networks run on TensorFlow
        )
    ],
)
