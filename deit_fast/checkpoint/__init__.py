"""A run's state on disk: what it is, how it is written, verified, found again and kept in an object store."""
