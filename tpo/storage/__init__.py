"""Storage of results: the run folder, its bucket, and crash-safe writes."""
