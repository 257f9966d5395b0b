"""The release that is served: its models, its index and its items."""
