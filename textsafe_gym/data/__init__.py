"""Prompts, preferences and labels: their schemas, readers and splits."""
