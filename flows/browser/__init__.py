"""The sample browser: every sample of a run with its scores and its part in the pairs, as a page and its data files."""
