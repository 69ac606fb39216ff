"""What a run needs, takes and costs, before anything runs."""
