"""`python -m benchmarks`: every comparison, one after the other."""

from benchmarks import bench_theory

if __name__ == "__main__":
    bench_theory.main()
