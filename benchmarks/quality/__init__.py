"""The quality benchmark: our models and their peers predict the same orders, by one protocol."""
