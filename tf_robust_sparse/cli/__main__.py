"""`python -m tf_robust_sparse.cli` is the command `trs`."""

from tf_robust_sparse.cli.main import main

main()
