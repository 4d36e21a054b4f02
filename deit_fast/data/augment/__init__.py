"""Augmentation of one view: all parameters are drawn first and applied later.

In: the recipe's sections, a seed, the index of an image and the number of the view.
Out, drawn as pure functions of seed, epoch, image and view (runtime/philox.py): arrays of parameters (view_params.py,
policies.py, erase.py, mix.py).
Out, applying these parameters: DALI graph functions of the crops and operations, which give uint8 [H, W, 3]
(view_graph.py, policy_graph.py, operations/); one DALI node that lets the native path do the same (native_graph.py);
and functions that erase and mix normalised batches [B, C, S, S] on the device.
Neither a graph nor the training step draws random numbers.
"""
