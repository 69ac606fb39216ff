"""What a run measures of itself while it works, and its export to Prometheus."""
