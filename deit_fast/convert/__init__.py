"""Weights of other codebases: told apart by their content, renamed to timm's names, fitted to a model, written."""
