"""Supervised fine-tuning, reward models and cost models, and the baselines they are held against."""

from textsafe_gym.extras import require

require("train")
