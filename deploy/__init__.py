"""Deployment: profiles, servers, images and clusters."""
