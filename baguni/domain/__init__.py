"""The nouns of a shop and of its recommender, in NumPy. Knows no server."""
