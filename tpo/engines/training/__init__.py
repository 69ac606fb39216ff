"""The trainers, and the workers that they run in."""
