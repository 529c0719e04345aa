"""Runs, from their specification to their files."""

from textsafe_gym.extras import require

require("train")
