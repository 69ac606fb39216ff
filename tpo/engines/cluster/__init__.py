"""Actor pools, placement and processes on Ray."""
