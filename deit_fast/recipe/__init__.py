"""Recipes: what is learned, as frozen, validated data."""
