"""What memory a run will take."""
