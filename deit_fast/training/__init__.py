"""A training run: loop.py -> step.py -> objective.py -> models/vit.py -> optim/lamb.py is the path of a step."""
