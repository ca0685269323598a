"""What a user may write: schema, stage and method configs, loading, ordering, fingerprint."""
