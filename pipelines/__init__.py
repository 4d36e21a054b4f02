"""Pipelines of TorchX components, resumable at any point: dag runs stages, deit3 holds the published ones as data."""
