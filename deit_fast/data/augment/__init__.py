"""What is done to a view, drawn first and applied later.

In: the recipe's sections, a seed, and which view of which image. Out: arrays of parameters (view_params.py,
policies.py, erase.py, mix.py), drawn as pure functions of what they are for (runtime/philox.py); DALI graph functions
of the crops and operations to uint8 [H, W, 3] (view_graph.py, policy_graph.py, operations/), or one node that has the
native path do all of them (native_graph.py); and functions that erase and mix normalised batches [B, C, S, S] on the
device. Nothing random is left in a graph or in the step.
"""
