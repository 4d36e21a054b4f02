"""Data sets as they are stored: encoded images with a class each, by index."""
