"""Captured requests, asked again of two releases."""
