"""The daemon: runs collectors, keeps their newest pages, serves them. Knows nothing of any subject."""

__version__ = "0.1.0"
