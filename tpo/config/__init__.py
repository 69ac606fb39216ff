"""What a run is told: every section of a profile, its fields, defaults and limits."""
