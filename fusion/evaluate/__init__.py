"""The command `scripts/evaluate.py`: how good prediction tables are, and which of two is better."""
