"""`python -m benchmarks`: every comparison on CPU, one after the other."""

import sys

from benchmarks import bench_theory, bench_trl

if __name__ == "__main__":
    bench_theory.main()
    sys.exit(bench_trl.main([]))
