"""Types of what Python sees of the Cython module; its C functions are in cython_api.pxd."""

import enum

class Stream(enum.IntEnum):
    STREAM_INPUT = 0
    STREAM_READOUT = 1
    STREAM_HIDDEN = 2
    STREAM_BACKWARD_HIDDEN = 3
    STREAM_FORWARD_NOISE = 4
    STREAM_BACKWARD_NOISE = 5
    STREAM_DATA = 6
    STREAM_SPARE = 7
