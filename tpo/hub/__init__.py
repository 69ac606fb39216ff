"""The model hub: addresses are resolved to commits once per run and downloaded before anything starts."""
