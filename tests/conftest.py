"""One thread for all tests and the processes that they start, whatever the caller set: several share a
machine, and the number of threads decides how floating-point sums round."""
import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "DISBACK_PROGRESS": "0"}
