"""Sound: log-mel features and the Parakeet tower."""
