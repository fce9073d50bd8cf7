"""The loop and its parts. It reads the row of a method and never asks for its name."""
