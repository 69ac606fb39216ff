"""A model of a run as a folder that others load: weights, how to ask it, how to read it, and where it comes from."""
