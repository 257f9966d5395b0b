"""Reports of the gateway: metrics, traces, served lists and captured requests."""
