"""`Recommend` under load, beside the bare servers that it asks."""
