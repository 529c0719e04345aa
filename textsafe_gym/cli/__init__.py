"""The command line: the one place that knows both the environments and the algorithms."""
