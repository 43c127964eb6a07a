"""Joint activations on disk: written once by any number of processes, read by any number of runs, also while it grows.

A cache is a folder. `cache.json` says what it is made of. The stream of sequences is cut into shards of equal length;
shard i is `shard-00000i.safetensors`, whoever writes it, with the tokens of its sequences beside their activations.
Each writer keeps a manifest of the shards that it has finished, with their checksums. Everything is written aside and
moved into place, so a reader sees whole shards only, and a writer that was stopped goes on with the next.
"""
