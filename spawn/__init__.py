"""The spawn service: agents rent computers, and payment is authentication."""

__version__ = "0.1.0"
