"""`python -m glmtune` is `glmtune`."""

from glmtune.cli import main

main()
