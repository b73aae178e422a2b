"""The `lacuna` command, also `python -m training`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command.

    Threads that wait for each other by spinning take the processor from those they wait for, wherever something else
    runs as well: a training beside two others then takes many times as long as by itself. OpenMP reads how it is to
    wait when it is loaded, therefore the late import.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from training.cli import main as run
    except KeyboardInterrupt:  # typer sees to it afterwards
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
