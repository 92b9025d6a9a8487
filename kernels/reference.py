"""The loss maths in plain torch."""
