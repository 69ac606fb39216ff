"""The console script `tpo`: `python -m flows`, from any folder."""

import runpy


def run() -> None:
    """Runs the command; ends the process with its exit status."""
    # As a program rather than by calling its main: it has to handle ^C before its own imports are done.
    runpy.run_module("flows", run_name="__main__", alter_sys=True)
