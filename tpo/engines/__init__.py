"""Sampling engines and training workers: the only package that imports Ray, vLLM and TRL."""
