"""watchties carries experiments from a web host to compute hosts, and their results back."""

__version__ = "0.1.0"
