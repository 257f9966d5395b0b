"""What the processes of baguni share: the domain's nouns, in NumPy. It knows no process and no torch."""
