"""What the gateway reports: metrics, traces, served lists and captured requests."""
