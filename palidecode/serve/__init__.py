"""The server: a model over HTTP, and its page."""

from palidecode.serve.app import create_app
from palidecode.serve.settings import Settings

__all__ = ["Settings", "create_app"]
