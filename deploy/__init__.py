"""Ways to run baguni: the local stack here; containers and clusters to come."""
