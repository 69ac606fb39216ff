"""The stages: one Prefect task a file, named by its verb; thin input and output round a pure core."""
