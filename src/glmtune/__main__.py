"""`glmtune`, and `python -m glmtune`."""

import sys


def main() -> None:
    """Runs the command line. Ctrl-C while that is still being imported ends it like any later one: with one line."""
    try:
        from glmtune.cli import main as run
    except KeyboardInterrupt:
        from glmtune.language import localise

        print(localise("Interrupted."), file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
