"""Adapting after deployment: cheap online updates, and an account that keeps them from doing harm."""
