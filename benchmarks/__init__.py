"""Speed, measured side by side with existing tools: `python -m benchmarks COMMAND`. README.md explains the commands."""
