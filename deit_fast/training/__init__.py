"""A training run. The path of a step is loop.py -> step.py -> objective.py -> models/vit.py -> optim/lamb.py.

run.py is the entry point. job.py holds the inputs of a run, start.py finds the checkpoint or weights to start from, and
prepare.py wraps the model and the step (sharding, compilation, DDP). periodic.py logs, evaluates and saves at
intervals, guards.py ends a run that went wrong, and schedule.py computes the learning rate.
"""
