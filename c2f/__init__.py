"""C2F-Bench: recommenders whose embedding table must fit a memory budget, trained and compared fairly."""

__version__ = "0.1.0"
