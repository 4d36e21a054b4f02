"""The command line: words in, printed results out. torch is imported only by the commands that need it."""
