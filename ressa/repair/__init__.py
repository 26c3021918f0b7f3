"""Repair: train masked low-rank updates on a pruned model, and merge them without losing a zero."""
