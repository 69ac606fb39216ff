"""`python -m flows`, and the console script `tpo`."""

import runpy


def run() -> None:
    """Runs the command and ends the process with its exit status."""
    # As a program, since it has to handle ^C before its own imports are done.
    runpy.run_module("flows.cli.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
