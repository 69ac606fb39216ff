"""Pages, tables and plots of a run's results."""
