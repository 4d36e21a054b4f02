"""Scripts of `benchmarks streaming`, in a folder of another name, because a peer's package is called streaming too."""
