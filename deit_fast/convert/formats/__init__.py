"""Containers of tensors: how the bytes of a file become named tensors, without running anything in it."""
