"""Publication of a run's model: weights, chat template, parser, cards and lineage in one folder."""
