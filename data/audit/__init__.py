"""What must be known about a data set before a number from it is believed: leaks, duplicates, faults, counts.

`command.py` runs everything for `scripts/audit.py`. Images are seen once, as thumbnails (`thumbnails.py`).
"""
