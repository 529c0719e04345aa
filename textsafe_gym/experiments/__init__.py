"""Runs, from their specification to their files."""
