"""What every room stands on: errors, files, object stores, processes, hardware, progress, logs, watchdog, profiler."""
