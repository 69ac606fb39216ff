"""Prompts and pairs from files, tasks and datasets."""
