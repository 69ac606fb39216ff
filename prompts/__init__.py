"""What we ask models, and how we read what comes back."""
