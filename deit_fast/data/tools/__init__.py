"""What users do with data besides training: check, preview, write shards, make the demo's digits."""
