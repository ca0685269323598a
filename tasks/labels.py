"""What stands for a label that is not there."""

UNLABELLED = -1
"""The label of a training sample that has none."""
