"""Benchmarks of many datasets, read where the user has them."""
