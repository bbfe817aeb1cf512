"""One page that tells a run's whole story and needs nothing but itself."""
