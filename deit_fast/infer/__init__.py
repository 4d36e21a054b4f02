"""Trained models in use: precision and compilation, evaluation, prediction, features."""
