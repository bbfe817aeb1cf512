"""Classifiers for rare classes on cached features: re-balanced, tau-normalised, nearest neighbours, and their mixture.

No image is read and no backbone trained, so everything takes seconds from a cache.
"""
