"""Evaluation: records of single responses, their statistics, the Pareto front, figures and the report."""

from textsafe_gym.extras import require

require("train")
