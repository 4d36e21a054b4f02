"""Using trained models: evaluation, prediction and features; and the forward pass, which training uses as well.

The forward pass: precision.py (uint8 images to fp32 logits), compile.py (torch.compile). On a data set: evaluate.py,
whose figures are in metrics/, and report.py. On single images: images.py and predict.py. Without images: create.py.
"""
