"""What stands before vLLM's server, so that clients see responses and no thoughts."""
