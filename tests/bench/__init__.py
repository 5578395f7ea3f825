"""Benchmarks: ratios of CPU time within one run, as machines are noisy. `make bench` runs all, `ARGS=NAME` some."""
