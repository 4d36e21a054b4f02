"""Basic modules that all other packages use, and that know nothing of models or images.

Extension points: discover.py. Messages to the user: errors.py, exit_status.py, console.py, progress.py, table.py,
stdout.py. Files and storage: files.py, mapped.py, mounts.py, object_store/, patience.py, braces.py. Processes and
machines: torchrun.py, rendezvous.py, world.py, hardware.py, host_memory.py, waiting.py, stopping.py, watchdog.py. A
run's figures: metrics_log.py, log_sinks/, profile.py, provenance.py. Random numbers, for data and initial weights
alike: philox.py.
"""
