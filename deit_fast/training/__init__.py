"""A training run: loop.py -> step.py -> objective.py -> models/vit.py -> optim/lamb.py is the path of a step.

Around it: run.py is the way in, job.py what a run is given, start.py where it starts, prepare.py what is put around the
step, periodic.py what comes every so often, guards.py what ends a run, schedule.py the learning rate.
"""
