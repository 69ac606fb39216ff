"""Studies: one recipe on several seeds, or two profiles on the same seeds, and what can be said over training runs."""
