"""Change what is served: activate, move, update and remove releases."""
