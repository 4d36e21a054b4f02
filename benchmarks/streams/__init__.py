"""Scripts of `benchmarks streaming`, apart from its module: a peer's package is called streaming too."""
