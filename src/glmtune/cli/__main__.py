"""`python -m glmtune.cli`, which is how torchrun starts it."""

from glmtune.cli import main

if __name__ == "__main__":
    main()
