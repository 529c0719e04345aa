"""Processes that train one policy together."""
