"""One experiment a file: `run(seed, progress, settings)` measures what a theorem claims and returns an `Outcome`."""
