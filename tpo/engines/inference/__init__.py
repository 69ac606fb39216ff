"""Sampling and reading by vLLM, and clients of servers that do the same."""
