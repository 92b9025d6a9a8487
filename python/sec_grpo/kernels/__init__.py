"""Triton kernels, one a module, beside the same maths in plain torch (`reference`)."""
