"""The whole system on one machine, without root and without containers: real servers from packages, under a supervisor."""
