"""Where results are kept: the run folder, its bucket, and what makes a write survive a crash."""
