"""Tasks' data: calibration, repair and evaluation examples, disjoint by image."""
