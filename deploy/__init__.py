"""Where it runs: profiles, and what serves a model."""
