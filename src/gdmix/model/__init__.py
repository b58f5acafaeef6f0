"""A trained model: coefficients, how they score rows, and how they are stored.

A model knows nothing of who trained it.
"""
