"""One question per file, answered from data: value, interval, n and a verdict that may be "cannot tell"."""
