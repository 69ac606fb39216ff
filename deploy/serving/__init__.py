"""The layer in front of vLLM's server that shows clients responses and hides thoughts."""
