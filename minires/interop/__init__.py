"""Weights from and for other frameworks: `minires.interop.torch`."""
