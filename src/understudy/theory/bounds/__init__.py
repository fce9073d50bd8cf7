"""What the theorems say, one function a statement: the constant as printed, the theorem in the docstring."""
