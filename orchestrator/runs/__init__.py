"""What a run leaves on disk: folder, record, lease, and the context a stage receives."""
