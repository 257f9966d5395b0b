"""Processes, ports and background tasks of one gateway."""
