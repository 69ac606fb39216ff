"""The model hub: addresses are resolved to commits once a run, and fetched to this machine before anything starts."""
