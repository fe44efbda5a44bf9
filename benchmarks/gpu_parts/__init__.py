"""The parts of `benchmarks.gpu`: each has `measure(context)`, which returns plain data, and `table(result)`."""
