"""Builds the engine's kernels where a C compiler is found; all else is in setup.cfg."""

from setuptools import Extension, setup

ENGINE = "tf_robust_sparse/engine"

setup(
    ext_modules=[
        Extension(
            "tf_robust_sparse.engine._kernels",
            [f"{ENGINE}/kernels.c"],
            depends=[f"{ENGINE}/{name}.h" for name in ("plan", "threads", "pack", "kernels", "operations")],
            extra_compile_args=["-O3", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,  # without it sparse networks run on TensorFlow
        )
    ]
)
