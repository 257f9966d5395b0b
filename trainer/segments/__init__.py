"""Ready-made segments from the generative head: who will buy of a category, and when something is bought again."""
