"""Speed, measured side by side with what people have: `python -m benchmarks COMMAND`. README.md says how."""
