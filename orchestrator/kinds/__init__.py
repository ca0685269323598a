"""The vocabulary of plans: every kind of stage, method, augmentation, optimizer and search, and all about it."""
