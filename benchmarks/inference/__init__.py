"""How quickly the models answer, beside the machine's own speed and the usual ways to do the same."""
