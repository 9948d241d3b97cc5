"""Tests run torch on one thread: their tensors are too small to share between cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
