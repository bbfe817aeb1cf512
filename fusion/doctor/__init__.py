"""Can this machine run the project? Findings, each with its remedy."""
