"""Objectives: pure functions on tensors, from next-token laws to a loss and its gradient."""
