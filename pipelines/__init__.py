"""Pipelines of TorchX components that can be resumed at any point: dag runs stages, deit3 holds published ones."""
