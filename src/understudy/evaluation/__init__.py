"""Measured once, stated with its uncertainty: sample, score, statistics."""
