"""Choices of experiments for a list."""
