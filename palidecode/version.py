"""The version, read by the package, the wheel and every file that names it."""

__version__ = "0.1.0"
