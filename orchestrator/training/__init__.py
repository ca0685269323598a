"""The loop, the optimizer, checkpoints, augmentation, evaluation."""
