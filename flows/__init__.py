"""The DAGs, each readable top to bottom on one screen, and the command that starts them."""
