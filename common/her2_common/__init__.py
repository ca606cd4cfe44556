"""What every role shares: the case table, the MAP model, metrics and the wire format."""

__version__ = "0.1.0"
