"""The inspection page: what is recommended to whom and why, read-only, for people who build or run a shop's recommendations."""
