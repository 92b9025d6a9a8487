"""Accelerated GRPO: fused loss kernels and a self-evolving curriculum."""
