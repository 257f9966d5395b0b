"""How quickly what streams in is in histories and in lists, and what a history costs."""
