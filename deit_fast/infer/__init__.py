"""Trained models in use: evaluation, prediction, features; and the forward pass that training shares with them.

The forward pass: precision.py (uint8 images to fp32 logits), compile.py (torch.compile). With a data set: evaluate.py,
whose figures metrics/ has, and report.py. With single images: images.py and predict.py. Without either: create.py.
"""
