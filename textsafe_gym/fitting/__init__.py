"""Supervised fine-tuning, reward models and cost models, and the baselines they are held against."""
