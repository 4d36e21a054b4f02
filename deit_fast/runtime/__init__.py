"""What every room stands on, and knows nothing of models or images itself.

Extension points: discover.py. The user: errors.py, exit_status.py, progress.py, table.py. Files: files.py,
object_store/, patience.py, braces.py. Processes and machines: torchrun.py, rendezvous.py, world.py, hardware.py,
stopping.py, watchdog.py. A run's figures: metrics_log.py, log_sinks/, profile.py. What is random: philox.py, for data
and initial weights alike.
"""
