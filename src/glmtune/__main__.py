"""`glmtune`, and `python -m glmtune`."""

import os
import sys


def main() -> None:
    """Runs the command line. Ctrl-C while that is still being imported ends it like any later one: with one line."""
    try:
        from glmtune.cli import main as run
    except KeyboardInterrupt:
        from glmtune.language import localise

        print(localise("Interrupted."), file=sys.stderr, flush=True)
        os._exit(130)  # sys.exit does not always give this code, since Python may go by the signal
    run()


if __name__ == "__main__":
    main()
