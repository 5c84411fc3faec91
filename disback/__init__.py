__version__ = "0.1.0"

import os
import sys

if os.environ.get("IN_TEST"):  # set by nbdev_test: one thread, whatever the caller set; workers share cores
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules: sys.modules["torch"].set_num_threads(1)
