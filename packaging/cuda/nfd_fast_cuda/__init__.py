"""The module of nfd_fast for NVIDIA GPUs; nfd_fast loads it for ``device="cuda"``."""
