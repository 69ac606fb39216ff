"""The DAGs, one screen each, and the command that starts them."""
