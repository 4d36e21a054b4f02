"""Optimizers: LAMB as apex computes it, torch's fused AdamW and SGD behind the same interface, weight average."""
