"""Speed, measured side by side with what people have: `python -m benchmarks COMMAND`. See README.md beside this file."""
