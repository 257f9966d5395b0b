"""Make a list: read what is known, find candidates, rank them, cut the page."""
