"""Requirements, duration and cost of a run, computed before anything runs."""
