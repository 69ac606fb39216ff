"""Pages, tables and plots of what a run has measured."""
