"""The configuration of a run: every section of a profile, with its fields, defaults and limits."""
