"""The papers' theorems as exact experiments: tabular worlds, float64 NumPy, enumeration where it is possible.

Nothing here imports the rest of the package, so that it can be the oracle of the training code.
"""
