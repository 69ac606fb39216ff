"""Sampling by vLLM engines, scoring by reward models, and clients of servers."""
