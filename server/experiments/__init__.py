"""What experiments choose for a list."""
