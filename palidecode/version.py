"""The version, read by the package, the wheel and every file that names it."""

__version__ = "0.2.0"
