"""Choices of small runs on the command line."""

SMALL = ["--width", "8", "--updates", "5", "--batch", "4", "--replicas", "3"]
GRID = [*SMALL, "--workers", "1", "--depths", "1,2", "--parameterizations", "mup,depth_mup"]
