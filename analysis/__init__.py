"""What experiments have shown: exposures joined to what their users did, and what may be concluded."""
