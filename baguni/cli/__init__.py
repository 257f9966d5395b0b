"""The `baguni` command."""
