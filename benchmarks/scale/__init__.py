"""How cost grows with the catalogue and with the users: `make bench-scale`."""
