"""What every room stands on: errors, files, object stores, processes, progress, logs, watchdog, profiler."""
