"""Who generates: decoders, the sampling loop, offline data, and one round's collection."""
