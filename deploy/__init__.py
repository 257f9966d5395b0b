"""Ways to run baguni: the local stack here; images in `containers`, a cluster in `kubernetes`."""
