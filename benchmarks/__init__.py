"""Speed and memory, side by side with peers: each file asks one question and runs as `python -m benchmarks.NAME`."""
