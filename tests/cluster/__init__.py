"""Sweeps on a real Ray cluster of several nodes, each in namespaces of its own."""
