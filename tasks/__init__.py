"""The stages: one Prefect task per file, named by its verb, with thin I/O around a pure core."""
