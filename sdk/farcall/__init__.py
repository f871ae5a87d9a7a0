"""Run Python functions on machines that are not the one in front of you."""
